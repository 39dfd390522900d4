"""Has a project's `conf/` come before what perceptrail ships; Hydra imports this at each start."""

from hydra.core.config_search_path import ConfigSearchPath, SearchPathQuery
from hydra.plugins.search_path_plugin import SearchPathPlugin

from perceptrail.invocation import CONF, OWN


class Project(SearchPathPlugin):
    """The current folder's `conf/`, for perceptrail's own commands alone."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Put it first."""
        shipped = any(item.path == str(CONF) for item in search_path.get_path())
        if shipped and OWN.is_dir():
            main = SearchPathQuery(provider="main")
            search_path.prepend("project", f"file://{OWN.absolute()}", anchor=main)
