"""Hostile and broken files, made by code, and the judge of what the command line says of them.

``runs``, ``tables``, ``pictures``, ``recordings`` and ``bombs`` each have a function ``cases`` of the models that
``models.make`` trained. ``judge.judged`` runs one case and returns what is wrong with the outcome, in words.
"""
