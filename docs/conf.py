"""The site: every code block of every page runs when it is built, and a warning is an error (`make docs`).

The lecture is built twice. In English it is part of the site; `-t zh` makes of the same sources and of the translations
in `locale/zh_CN` a site of its own, whose links to other pages lead to the English one around it.
"""

import os
import sys
from importlib.metadata import files
from pathlib import Path

from docutils import nodes
from jupyter_cache import get_cache
from myst_nb.core import render

import diffeo

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
BUILD = Path(os.environ.get("DIFFEO_DOCS", HERE.parent / "build" / "docs"))
CHINESE = tags.has("zh")  # type: ignore[name-defined]  # noqa: F821

project, author, copyright = "diffeo", "diffeo's authors", "diffeo's authors, MIT licence"
release = version = diffeo.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx.ext.intersphinx",
    "docstrings",  # these two are beside this file
    "command_line",
]
exclude_patterns = ["locale", "**/.ipynb_checkpoints"]

# Notebooks are text; no output is stored. What cells print is kept in a cache beside the site, which `make docs`
# empties first, so that the Chinese pages show what the English ones have computed.
nb_execution_mode = "cache"
nb_execution_cache_path = str(BUILD / "cache")
nb_execution_in_temp = True  # what a page writes is gone with it
nb_execution_raise_on_error = True
nb_execution_timeout = 180
nb_merge_streams = True
nb_render_text_lexer = "none"
nb_code_prompt_show, nb_code_prompt_hide = ("查看解答", "收起") if CHINESE else ("Show the solution", "Hide it")
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # pages run the diffeo command
os.environ["MATPLOTLIBRC"] = str(HERE / "matplotlibrc")
os.environ["BASH_ENV"] = str(HERE / "bash.sh")  # a command that fails, fails the page, whatever follows it

myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence", "deflist", "attrs_inline"]
myst_heading_anchors = 4

# MathJax is shipped: one file, which holds its fonts and opens from the file system.
mathjax_path = "tex-svg.js"
_mathjax = next(file for file in files("sphinx-mathjax-offline") or [] if file.name == mathjax_path)
html_static_path = ["_static", str(_mathjax.locate())]

html_theme = "furo"
html_title = "diffeo 标准化流讲义" if CHINESE else "diffeo"
html_css_files = ["diffeo.css"]
html_copy_source = False
html_show_sphinx = False
html_theme_options = {"source_edit_link": "", "top_of_page_buttons": []}

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_default_options = {"members": True}
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_mock_imports = ["pocomc", "pyro", "sbi", "zuko"]  # what the adapters are for need not be there
napoleon_numpy_docstring = False
napoleon_custom_sections = [("Attributes", "params_style")]
toc_object_entries_show_parents = "hide"

locale_dirs = ["locale"]
gettext_compact = False
gettext_location = False

if CHINESE:
    language = "zh_CN"
    root_doc = "lecture/index"
    include_patterns = ["lecture/**"]
    intersphinx_mapping = {"en": ("../", str(BUILD / "html" / "objects.inv"))}


def _english_page(app, env, node, text):  # noqa: ANN001, ANN202
    """Lead a link of the Chinese lecture to a page that is only in English, in the site around it."""
    if node["reftype"] == "doc":
        up = "../" * (1 + node["refdoc"].count("/"))
        return nodes.reference("", "", text, internal=False, refuri=f"{up}{node['reftarget'].lstrip('/')}.html")
    return None


def _joined(outputs, merge=render.coalesce_streams):  # noqa: ANN001, ANN202
    """Join what a cell prints as it was printed: MyST-NB ends a line after each chunk, wherever a shell's are cut."""
    whole, streams = [], {}
    for output in outputs:
        earlier = streams.get(output.get("name")) if output["output_type"] == "stream" else None
        if earlier is not None:
            earlier["text"] += output["text"]
            continue
        whole.append(output)
        if output["output_type"] == "stream":
            streams[output["name"]] = output
    return merge(whole)


render.coalesce_streams = _joined


def _dealt(app, env, docnames):  # noqa: ANN001, ANN202
    """Deal the pages out. Each process reads a run of them, and those that take long are beside each other."""
    docnames[:] = [name for first in range(10) for name in docnames[first::10]]


def _made(app):  # noqa: ANN001, ANN202
    """Make the cache's tables before the processes that read pages start: each would, and read another's half made."""
    get_cache(nb_execution_cache_path).db.dispose()


def setup(app) -> dict[str, bool]:  # noqa: ANN001
    """Called by Sphinx."""
    app.connect("builder-inited", _made)
    app.connect("env-before-read-docs", _dealt)
    if CHINESE:
        app.connect("missing-reference", _english_page)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
