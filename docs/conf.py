"""How the site is built: Sphinx with the theme furo, Markdown through MyST, tutorials executed through MyST-NB.

``bash .ci/docs`` builds it in an environment of its own, with warnings as errors.
"""

import os
from functools import partial
from importlib.metadata import version as version_of

import nbclient
from jupyter_cache.executors import utils as executing

project = "gym_replay"
author = "gym_replay contributors"
copyright = author
version = release = version_of("gym-replay")

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_argparse_cli", "sphinx_copybutton"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"gym_replay {version}"
html_theme_options = {"navigation_with_keys": True}

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 4
"""Headings have the anchors that GitHub gives them, so that a link works in both places."""

nb_execution_mode = "cache"
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_execution_timeout = 600
nb_merge_streams = True
nb_output_stderr = "remove"
nb_render_markdown_format = "myst"  # with tables
executing.executenb = partial(nbclient.execute, coalesce_streams=True)
"""What a cell prints comes in pieces, which MyST-NB joins with line breaks; joined before, none is within a line."""

os.environ.update(TQDM_DISABLE="1", SDL_VIDEODRIVER="dummy", SDL_AUDIODRIVER="dummy", PYGAME_HIDE_SUPPORT_PROMPT="1")
os.environ["OMP_NUM_THREADS"] = "1"  # small networks, on machines where others are busy too

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
maximum_signature_line_length = 88
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
suppress_warnings = ["ref.python"]  # attributes of one name in several classes are looked for by their name alone
copybutton_prompt_text = "$ "
