"""Buttons to the repository, to issues and to launchers: if ``_config.yml`` names a repository."""

BUTTONS = ("use_repository_button", "use_issues_button", "use_edit_page_button")


def options(app, config):
    chosen = config.html_theme_options
    if chosen.get("repository_url"):
        chosen.update(dict.fromkeys(BUTTONS, True))
    else:
        chosen.pop("launch_buttons", None)


def setup(app):
    app.connect("config-inited", options)
    return {"version": "1", "parallel_read_safe": True}
