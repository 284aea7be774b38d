"""What a model is worth, in numbers (``check``) and in pictures (``figures``)."""
