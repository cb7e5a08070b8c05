"""DTEM as its authors' release trains it: training partitions the tokens the other way round than inference,
three candidates per token, both temperatures 0.1, 16 tokens removed per block (arXiv 2412.10569).

source     the release of arXiv 2412.10569
"""

merging = dict(policy="dtem", reduction=16, options=dict(split="reference", candidates=3, tau1=0.1, tau2=0.1))
