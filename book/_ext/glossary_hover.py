"""Terms of the glossary say what they mean when the pointer rests on them."""

from docutils import nodes

PREFIX = "term-"  #: of the ids that Sphinx gives to terms


def definitions(env):
    """Definition by id, of all glossaries."""
    found = {}
    for docname in sorted(env.found_docs):
        if not docname.endswith("glossary"):
            continue
        for item in env.get_doctree(docname).findall(nodes.definition_list_item):
            text = " ".join(
                " ".join(part.astext().split()) for part in item.findall(nodes.definition)
            )
            found |= {id_: text for term in item.findall(nodes.term) for id_ in term["ids"]}
    return found


def explain(app, doctree, docname):
    meant = None
    for reference in doctree.findall(nodes.reference):
        id_ = (reference.get("refid") or reference.get("refuri", "").partition("#")[2]) or ""
        if reference.get("internal") and id_.startswith(PREFIX):
            meant = definitions(app.env) if meant is None else meant
            reference["reftitle"] = meant.get(id_, reference.get("reftitle", ""))
            reference["classes"].append("glossary-term")


def setup(app):
    app.connect("doctree-resolved", explain)
    return {"version": "1", "parallel_read_safe": True}
