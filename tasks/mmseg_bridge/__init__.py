"""The door to MMSegmentation, which takes seconds to import. To register `DTEMBackbone` in mmseg, `import tasks.mmseg_bridge`."""

from tasks.mmseg_bridge import backbone  # noqa: F401 (registration; first, as it sees to it that mmseg can be imported)
