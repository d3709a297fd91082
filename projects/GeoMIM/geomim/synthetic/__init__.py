"""A small world in the nuScenes format: streets, sensors, labels, all exact. ``python -m geomim synthesize`` makes one."""

from .keyframe import Recipe
from .world import make_recipe, summarise, write_world

__all__ = ['Recipe', 'make_recipe', 'summarise', 'write_world']
