"""One process of plain PyTorch in fp32."""

engine = dict(type="local", precision="fp32")
