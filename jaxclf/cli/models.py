"""jaxclf models: the names of networks and heads."""

import dataclasses
from typing import Annotated

import tyro


@dataclasses.dataclass(frozen=True)
class Models:
    """Show the names of backbones with their options, and those of heads."""

    pattern: Annotated[str, tyro.conf.Positional] = "*"
    """Shell pattern that backbones must match, as 'resnet*'."""

    def run(self) -> None:
        """Print a line for each name."""
        from jaxclf.errors import unknown
        from jaxclf.models.backbones import backbone_options, list_models
        from jaxclf.models.heads import list_heads

        names = list_models(self.pattern)
        if not names:
            raise unknown("backbone", self.pattern, list_models())
        for name in names:
            print(f"{name:24} {', '.join(backbone_options(name))}".rstrip())
        if self.pattern == "*":
            print(f"heads: {', '.join(list_heads())}")
