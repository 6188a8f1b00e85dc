"""Reads a compiled program's text (HLO): instructions, collectives, and traffic with a chip's main memory (HBM)."""

import collections
import dataclasses
import math
import re

BITS = re.compile(r"\d+")  # of a type's name: bf16, s32, f8e4m3fn; "pred" has none and takes a byte
ARRAY = re.compile(r"\b(pred|[a-z]+\d+\w*)\[([\d,]*)\](?:\{([^{}]*)\})?")
INSTRUCTION = re.compile(r"\s*(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)")
QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"')
COLLECTIVE = r"[\w\-]*(?:all-|collective|reduce-scatter|send|recv)[\w\-]*"  # every opcode that is one has such a part
HIDDEN = re.compile(r"all.?reduce|all.?gather|all.?to.?all|permute|collective|reduce.?scatter|send|recv", re.IGNORECASE)
# These move nothing themselves; the end of a copy was counted at its start.
FREE = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "copy-done", "slice-done", "all-reduce-done")


@dataclasses.dataclass(frozen=True)
class Array:
    """An array that an instruction makes.

    Attributes:
        dtype: HLO's name, such as "bf16".
        shape: sizes of its axes.
        in_hbm: whether it lies in main memory and not in a memory on the chip's core.
    """

    dtype: str
    shape: tuple[int, ...]
    in_hbm: bool = True

    @property
    def bytes(self) -> int:
        bits = BITS.search(self.dtype)
        return math.prod(self.shape) * (max(int(bits[0]) // 8, 1) if bits else 1)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of the text; `arrays` are those of its result, flat, `rest` is all that follows the opcode."""

    name: str
    opcode: str
    arrays: tuple[Array, ...]
    operands: tuple[str, ...]
    rest: str

    @property
    def op_name(self) -> str:
        """Where the program that was traced had it, such as "jit(train_step)/jvp()/reduce_sum"."""
        found = re.search(r'op_name="([^"]*)"', self.rest)
        return found[1] if found else ""


@dataclasses.dataclass(frozen=True)
class Collective:
    """An instruction in which devices exchange `arrays`, each with the op_name of what it serves."""

    name: str
    opcode: str
    arrays: tuple[tuple[Array, str], ...]


def read_arrays(text: str) -> tuple[Array, ...]:
    """The arrays of a type such as "(f32[64]{0:T(128)S(1)}, f32[])"; S(0), or none, is main memory."""
    found = []
    for dtype, shape, layout in ARRAY.findall(text):
        space = re.search(r"S\((\d+)\)", layout)
        sizes = tuple(int(size) for size in shape.split(",") if size)
        found.append(Array(dtype, sizes, in_hbm=space is None or space[1] == "0"))
    return tuple(found)


def read_instructions(text: str) -> list[Instruction]:
    """All instructions, those inside fusions and other computations too."""
    found = []
    for line in text.splitlines():
        if match := INSTRUCTION.match(line):
            name, type_, opcode, rest = match.groups()
            operands = tuple(re.findall(r"%([\w.\-]+)", rest.partition(")")[0]))
            found.append(Instruction(name, opcode, read_arrays(type_), operands, rest))
    return found


def find_collectives(text: str) -> list[Collective]:
    """Every instruction in which devices exchange something; an asynchronous one counts once, at its start.

    Raises:
        ValueError: a word of the text looks like a collective, but no instruction with that opcode was read.
    """
    instructions = read_instructions(text)
    read = [instruction for instruction in instructions if re.fullmatch(COLLECTIVE, instruction.opcode)]
    # A second, cruder reading of the text, so that no collective is missed because its line was not understood.
    seen = collections.Counter(re.findall(rf"(?<![%\w.\-])({COLLECTIVE})\(", QUOTED.sub('""', text)))
    if seen != collections.Counter(instruction.opcode for instruction in read):
        raise ValueError(f"the text has the collectives {dict(seen)}, but only {len(read)} of them were understood")
    ends = {end.operands[0]: end.name for end in read if end.opcode.endswith("-done") and end.operands}
    # XLA combines small collectives into one with many arrays; what takes an array out knows what it served.
    served = {}
    for instruction in instructions:
        if instruction.opcode == "get-tuple-element" and (index := re.search(r"index=(\d+)", instruction.rest)):
            served[instruction.operands[0], int(index[1])] = instruction.op_name
    found = []
    for start in read:
        if not start.opcode.endswith("-done"):
            result = ends.get(start.name, start.name)
            names = [served.get((result, i)) or start.op_name for i in range(len(start.arrays))]
            found.append(Collective(start.name, start.opcode, tuple(zip(start.arrays, names, strict=True))))
    for call in instructions:
        target = re.search(r'custom_call_target="([^"]*)"', call.rest) if call.opcode == "custom-call" else None
        if target and HIDDEN.search(target[1]):
            arrays = tuple((array, call.op_name) for array in call.arrays)
            found.append(Collective(call.name, f"custom-call {target[1]}", arrays))
    return found


def hbm_traffic(text: str) -> int:
    """Bytes that the program's main computation reads from and writes to main memory.

    Each instruction reads its operands and writes its results, whole; what lies on the core is not counted, nor is
    what loops and conditions do inside.
    """
    total, made = 0, {}
    for instruction in read_instructions(text[text.index("\nENTRY ") :]):
        made[instruction.name] = instruction.arrays
        if instruction.opcode in FREE:
            continue
        if instruction.opcode in ("copy-start", "slice-start"):  # from and to, in either order, and a token
            ends = instruction.arrays[:2]
            total += min(end.bytes for end in ends) * sum(end.in_hbm for end in ends)
            continue
        touched = list(instruction.arrays)
        for operand in instruction.operands:
            touched += made.get(operand, ())
        total += sum(array.bytes for array in touched if array.in_hbm)
    return total
