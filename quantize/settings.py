"""What a user can choose, checked before anything is read."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from console.errors import InputError
from quantize.solver.quantizers import NF4Quantizer, Quantizer, UniformQuantizer
from quantize.solver.solve import REVISION

if TYPE_CHECKING:
    from pathlib import Path

Kind = Literal["vision", "decoder", "head"]
Format = Literal["compressed-tensors", "gptq", "bitsandbytes"]

GROUP_SIZES = (16, 32, 64, 128, 256)  # the blocks ONNX Runtime's MatMulNBits takes
DEVICES = ("cpu", "cuda")
NF4_BLOCK = 64  # bitsandbytes' default; its layout has one block size for the whole model


@dataclass(frozen=True)
class Settings:
    """One quantization. What is None gets the default of the grid and format; bits of 16 mean: not quantized.

    model: checkpoint folder. output: folder to write; None means `./<model>-w4`, `-w8`, `-nf4` or `-w4-gptq`.
    format: how weights are stored; gptq has the same bits everywhere, and only in the decoder. documents: a source of
    `calib_data.sources.open_documents`. count: documents to calibrate on. reference: evaluation documents whose
    unquantized predictions are kept. dtype: of whatever stays in 16 bits, and of the scales of integer grids. Raises
    InputError for a combination that does not exist.
    """

    model: Path
    output: Path | None = None
    bits: int = 4
    quant_type: Literal["int", "nf4"] = "int"
    format: Format | None = None
    solver: Literal["gptq", "rtn"] = "gptq"
    group_size: int | None = None
    vision_bits: int | None = None
    head_bits: int | None = None
    documents: str = "rendered"
    count: int = 128
    seed: int = 0
    reference: int = 32
    device: Literal["cpu", "cuda"] = "cpu"
    dtype: Literal["float16", "bfloat16"] = "float16"

    def __post_init__(self) -> None:
        nf4, gptq = self.quant_type == "nf4", self.format == "gptq"
        self._default("format", "bitsandbytes" if nf4 else "compressed-tensors")
        self._default("group_size", NF4_BLOCK if nf4 else 128)
        self._default("vision_bits", 16 if nf4 or gptq else 8)
        self._default("head_bits", 16 if nf4 or gptq else 8)
        _choose("--quant-type", self.quant_type, ("int", "nf4"))
        _choose("--solver", self.solver, ("gptq", "rtn"))
        _choose("--dtype", self.dtype, ("float16", "bfloat16"))
        _choose("--device", self.device, DEVICES)
        if nf4:
            _choose("--format", self.format, ("bitsandbytes",), "with --quant-type nf4")
            _choose("--bits", self.bits, (4,), "with --quant-type nf4")
            _choose("--group-size", self.group_size, (NF4_BLOCK,), "with --quant-type nf4")
            _choose("--vision-bits", self.vision_bits, (4, 16), "with --quant-type nf4")
            _choose("--head-bits", self.head_bits, (4, 16), "with --quant-type nf4")
        else:
            _choose("--format", self.format, ("compressed-tensors", "gptq"), "with --quant-type int")
            _choose("--bits", self.bits, (4, 8))
            _choose("--group-size", self.group_size, GROUP_SIZES)
            where = "with --format gptq" if gptq else ""
            _choose("--vision-bits", self.vision_bits, (16,) if gptq else (8, 16), where)
            _choose("--head-bits", self.head_bits, (16,) if gptq else (4, 8, 16), where)
        if self.output is not None and self.output.name in ("", ".."):
            raise InputError(f"--output {self.output} is no new folder; give the name of one")
        if self.count < 1:
            raise InputError(f"--count is {self.count}; at least one document is needed")
        if self.reference < 0:
            raise InputError(f"--reference is {self.reference}; give a number of documents, 0 for none")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise InputError("--device cuda: PyTorch finds no CUDA device here; use --device cpu")

    def _default(self, name: str, value: int | str) -> None:
        if getattr(self, name) is None:
            object.__setattr__(self, name, value)

    @property
    def folder(self) -> Path:
        """The folder to write."""
        if self.output is not None:
            return self.output
        from pathlib import Path

        kind = "nf4" if self.quant_type == "nf4" else f"w{self.bits}"
        return Path(f"{self.model.resolve().name}-{kind}{'-gptq' if self.format == 'gptq' else ''}")

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype of what stays in 16 bits."""
        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype

    def quantizer_of(self, kind: Kind) -> Quantizer | None:
        """Choose the grid of a part's linears; None where they stay in 16 bits."""
        bits = {"vision": self.vision_bits, "decoder": self.bits, "head": self.head_bits}[kind]
        assert bits is not None
        assert self.group_size is not None
        if bits == 16:
            return None
        return (
            NF4Quantizer(NF4_BLOCK)
            if self.quant_type == "nf4"
            else UniformQuantizer(bits, self.group_size, self.torch_dtype)
        )

    def record(self, checkpoint: str, companions: str) -> dict[str, Any]:
        """List what decides the result: not where it goes, the model by hashes of its files, and how it is solved."""
        record = asdict(self)
        for place in ("output", "device"):
            del record[place]
        model = {"model": self.model.resolve().name, "checkpoint": checkpoint, "companions": companions}
        return {**record, **model, "revision": REVISION}


def _choose(option: str, value: object, allowed: tuple[object, ...], where: str = "") -> None:
    if value not in allowed:
        choices = " or ".join(str(choice) for choice in allowed)
        raise InputError(f"{option} {value} is not possible{where and ' ' + where}; choose {choices}")
