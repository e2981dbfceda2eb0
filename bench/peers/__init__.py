"""Our GPTQ and NF4 against other quantizers, each of them in an environment of its own, on two models."""
