"""One process of plain PyTorch in fp32, on one thread: in layers this small two OpenMP threads wait for each
other."""

engine = dict(type="local", precision="fp32", threads=1)
