"""A bibliography whose labels are what the text cites: "Meng et al., 2022"."""

from pybtex.plugin import register_plugin
from pybtex.style.formatting.unsrt import Style
from pybtex.style.labels import BaseLabelStyle

MANY = 2  #: authors from whom on the rest is "et al."


def label(entry) -> str:
    """Authors and year of an entry."""
    people = [" ".join((*p.prelast_names, *p.last_names)) for p in entry.persons["author"]]
    named = people if len(people) <= MANY else [f"{people[0]} et al."]
    return f"{' and '.join(named)}, {entry.fields['year']}".replace("{", "").replace("}", "")


class Labels(BaseLabelStyle):
    def format_labels(self, sorted_entries):
        found = [label(entry) for entry in sorted_entries]
        seen: dict[str, int] = {}
        for text in found:
            seen[text] = seen.get(text, -1) + 1
            yield text + ("abcdefgh"[seen[text]] if found.count(text) > 1 else "")


class AuthorYear(Style):
    default_label_style = Labels
    default_sorting_style = "author_year_title"


def setup(app):
    register_plugin("pybtex.style.formatting", "author_year", AuthorYear)
    return {"version": "1", "parallel_read_safe": True}
