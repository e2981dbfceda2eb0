"""Settings of one quantization, checked when they are made. Imports no torch: a wrong option is reported at once."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from console.errors import InputError

if TYPE_CHECKING:
    import torch

    from quantize.solver.quantizers import Quantizer

Part = Literal["vision", "decoder", "head"]
Format = Literal["compressed-tensors", "gptq", "bitsandbytes"]

GROUP_SIZES = (16, 32, 64, 128, 256)  # the blocks ONNX Runtime's MatMulNBits takes
DEVICES = ("cpu", "cuda")
NF4_BLOCK = 64  # bitsandbytes' default; its layout has one block size for the whole model

# Raise it when the same settings give other bytes, because of the solver, the splits of documents, their prompts or
# their names: a run of another revision is neither resumed nor accepted as finished.
REVISION = 5


@dataclass(frozen=True)
class Settings:
    """Settings of one quantization. 16 bits: not quantized. None: the default of the format and quantization type.

    Raises InputError for a combination that does not exist.
    """

    model: str | Path
    """Checkpoint folder, with config.json and safetensors files."""
    output: str | Path | None = None
    """Folder to write. None: `./<model>-w4`, `-w8`, `-nf4` or `-w4-gptq`."""
    bits: int = 4
    """Bits of the decoder's weights: 4 or 8; nf4: 4."""
    quant_type: Literal["int", "nf4"] = "int"
    """Symmetric integers, or the NF4 codebook."""
    format: Format | None = None
    """Checkpoint format. int: compressed-tensors (the default) or gptq; nf4: bitsandbytes."""
    solver: Literal["gptq", "rtn"] = "gptq"
    """GPTQ, or RTN (round to nearest)."""
    group_size: int | None = None
    """Weights that share a scale: 16, 32, 64, 128 (the default) or 256; nf4: 64."""
    vision_bits: int | None = None
    """Bits of the vision tower. int: 8 (the default) or 16; nf4: 4 or 16 (the default); gptq format: 16."""
    head_bits: int | None = None
    """Bits of the head. int: 4, 8 (the default) or 16; nf4: 4 or 16 (the default); gptq format: 16."""
    documents: str = "rendered"
    """Source of documents, as `calib_data.sources.open_documents` takes it."""
    count: int = 128
    """Number of calibration documents, at least 1."""
    seed: int = 0
    """Seed that draws documents from the source."""
    reference: int = 32
    """Number of evaluation documents whose unquantized predictions go into reference.npz. 0: no such file."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Device to compute on."""
    dtype: Literal["float16", "bfloat16"] = "float16"
    """Dtype of integer scales and of weights that are not quantized."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "documents", str(self.documents))  # a Path would fail in the journal, hours later
        nf4, gptq = self.quant_type == "nf4", self.format == "gptq"
        self._default("format", "bitsandbytes" if nf4 else "compressed-tensors")
        self._default("group_size", NF4_BLOCK if nf4 else 128)
        self._default("vision_bits", 16 if nf4 or gptq else 8)
        self._default("head_bits", 16 if nf4 or gptq else 8)
        _check("--quant-type", self.quant_type, ("int", "nf4"))
        _check("--solver", self.solver, ("gptq", "rtn"))
        _check("--dtype", self.dtype, ("float16", "bfloat16"))
        _check("--device", self.device, DEVICES)
        if nf4:
            self._check_nf4()
        else:
            self._check_int(gptq=gptq)
        if self.folder.name in ("", ".."):
            raise InputError(f"--output {self.output} is not a new folder; give the name of one")
        if self.count < 1:
            raise InputError(f"--count is {self.count}; at least one document is needed")
        if self.reference < 0:
            raise InputError(f"--reference is {self.reference}; give a number of documents, 0 for none")
        if self.device == "cuda" and not _has_cuda():
            raise InputError("--device cuda: PyTorch finds no CUDA device here; use --device cpu")

    def _check_nf4(self) -> None:
        _check("--format", self.format, ("bitsandbytes",), "with --quant-type nf4")
        _check("--bits", self.bits, (4,), "with --quant-type nf4")
        _check("--group-size", self.group_size, (NF4_BLOCK,), "with --quant-type nf4")
        _check("--vision-bits", self.vision_bits, (4, 16), "with --quant-type nf4")
        _check("--head-bits", self.head_bits, (4, 16), "with --quant-type nf4")

    def _check_int(self, *, gptq: bool) -> None:
        _check("--format", self.format, ("compressed-tensors", "gptq"), "with --quant-type int")
        _check("--bits", self.bits, (4, 8))
        _check("--group-size", self.group_size, GROUP_SIZES)
        where = "with --format gptq" if gptq else ""
        _check("--vision-bits", self.vision_bits, (16,) if gptq else (8, 16), where)
        _check("--head-bits", self.head_bits, (16,) if gptq else (4, 8, 16), where)

    def _default(self, name: str, value: int | str) -> None:
        if getattr(self, name) is None:
            object.__setattr__(self, name, value)

    @property
    def source(self) -> Path:
        """The checkpoint folder."""
        return Path(self.model)

    @property
    def folder(self) -> Path:
        """The folder to write."""
        if self.output is not None:
            return Path(self.output)
        kind = "nf4" if self.quant_type == "nf4" else f"w{self.bits}"
        return Path(f"{self.source.resolve().name}-{kind}{'-gptq' if self.format == 'gptq' else ''}")

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype of weights that are not quantized."""
        import torch

        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype

    def quantizer_of(self, part: Part) -> Quantizer | None:
        """Choose the quantizer of a part's linears; None where they stay in 16 bits."""
        from quantize.solver.quantizers import NF4Quantizer, UniformQuantizer

        bits = {"vision": self.vision_bits, "decoder": self.bits, "head": self.head_bits}[part]
        assert bits is not None
        assert self.group_size is not None
        if bits == 16:
            return None
        if self.quant_type == "nf4":
            return NF4Quantizer(NF4_BLOCK)
        return UniformQuantizer(bits, self.group_size, self.torch_dtype)

    def record(self, checkpoint: str, companions: str) -> dict[str, Any]:
        """List what decides the result, as JSON can hold it. checkpoint, companions: hashes of the model's files.

        Where the result goes and the device are left out; the model is named by its folder and its hashes.
        """
        record = asdict(self)
        for place in ("output", "device"):
            del record[place]
        model = {"model": self.source.resolve().name, "checkpoint": checkpoint, "companions": companions}
        return {**record, **model, "revision": REVISION}


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def _check(option: str, value: object, allowed: tuple[object, ...], where: str = "") -> None:
    if value not in allowed:
        choices = " or ".join(str(choice) for choice in allowed)
        raise InputError(f"{option} {value} is not possible{where and ' ' + where}; choose {choices}")
