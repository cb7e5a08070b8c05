"""DeepSpeed, bf16 over fp32 weights, optimizer state divided over the GPUs."""

engine = dict(type="deepspeed", zero_stage=1, precision="bf16")
