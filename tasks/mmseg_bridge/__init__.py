"""The door to MMSegmentation, which takes seconds to import. To register `DTEMBackbone` in mmseg, `import
tasks.mmseg_bridge`."""

from tasks.mmseg_bridge.compat import import_mmseg

import_mmseg()  # first, as it sees to it that the modules of this folder can import mmseg

from tasks.mmseg_bridge.backbone import DTEMBackbone  # noqa: E402

__all__ = ["DTEMBackbone"]
