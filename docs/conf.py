"""How ``make docs`` builds the pages: Sphinx, MyST for the Markdown and the notebooks, Furo for the looks."""

from importlib import metadata

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml

project = "tf-importance-sampling"
author = "The tf-importance-sampling authors"
release = metadata.version("tf-importance-sampling")

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_math_renderer = "mathml"
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # notebooks are shown as they were executed, by docs/notebooks/execute.py
exclude_patterns = ["_build"]
nitpicky = False  # TensorFlow and Keras have no inventory to look their names up in

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_type_aliases = {"npt.ArrayLike": "ArrayLike"}
napoleon_google_docstring = True
napoleon_numpy_docstring = False

html_theme = "furo"
html_title = project
html_static_path: list[str] = []


def setup(app):
    """Formulas as MathML, which browsers show by themselves; what is indented in a docstring as the code that it is."""
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    app.connect("autodoc-process-docstring", _show_code)


def _inline(translator, node):
    translator.body.append(tex2mathml(node.astext()))
    raise nodes.SkipNode


def _block(translator, node):
    translator.body.append(f'<div class="math">{tex2mathml(node.astext(), as_block=True)}</div>')
    raise nodes.SkipNode


def _show_code(app, what, name, obj, options, lines):
    if what == "module":
        for place in range(len(lines) - 1, 0, -1):
            begins = lines[place].startswith("    ") and not lines[place - 1].strip()
            before = next((line for line in reversed(lines[:place]) if line.strip()), "")
            if begins and not before.startswith("    ") and not before.endswith("::"):
                lines[place:place] = ["::", ""]
