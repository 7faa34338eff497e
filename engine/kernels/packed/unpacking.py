"""Turns packed integers into numbers of 16 bits within a kernel.

A byte becomes the low bits of a float whose exponent makes them count as ones: 128 + q in bfloat16,
1024 + q in float16. One instruction of the GPU makes two such numbers of two bytes, where a
conversion would take several slow ones. Triton's interpreter has no such instructions and converts.
"""

from __future__ import annotations

import triton
import triton.language as tl

# The names that kernels read must be constants of Triton.
HALF_RUN: tl.constexpr = tl.constexpr(16)


@triton.jit
def raised_nibbles(packed, dtype: tl.constexpr, IS_INTERPRETED: tl.constexpr):
    """Returns the low and the high halves of bytes, more by what `raise_of` says, exactly."""
    if IS_INTERPRETED:
        low = ((packed & 15).to(tl.float32) + raise_of(dtype)).to(dtype)
        high = ((packed >> 4).to(tl.float32) + raise_of(dtype)).to(dtype)
    elif dtype == tl.bfloat16:
        low, high = tl.inline_asm_elementwise(
            """
            {
            .reg .b32 low, high;
            and.b32 low, $4, 0x0F0F0F0F;
            shr.b32 high, $4, 4;
            and.b32 high, high, 0x0F0F0F0F;
            prmt.b32 $0, low, 0x43434343, 0x4140;
            prmt.b32 $1, low, 0x43434343, 0x4342;
            prmt.b32 $2, high, 0x43434343, 0x4140;
            prmt.b32 $3, high, 0x43434343, 0x4342;
            }
            """,
            "=r,=r,=r,=r,r",
            [packed],
            dtype=(tl.bfloat16, tl.bfloat16),
            is_pure=True,
            pack=4,
        )
    else:
        low, high = tl.inline_asm_elementwise(
            """
            {
            .reg .b32 low, high;
            and.b32 low, $4, 0x0F0F0F0F;
            shr.b32 high, $4, 4;
            and.b32 high, high, 0x0F0F0F0F;
            prmt.b32 $0, low, 0x64646464, 0x4140;
            prmt.b32 $1, low, 0x64646464, 0x4342;
            prmt.b32 $2, high, 0x64646464, 0x4140;
            prmt.b32 $3, high, 0x64646464, 0x4342;
            }
            """,
            "=r,=r,=r,=r,r",
            [packed],
            dtype=(tl.float16, tl.float16),
            is_pure=True,
            pack=4,
        )
    return low, high


@triton.jit
def raise_of(dtype: tl.constexpr):
    """Returns how much more the numbers of `raised_nibbles` are than the values."""
    return 128.0 if dtype == tl.bfloat16 else 1024.0


@triton.jit
def nibbles(packed, dtype: tl.constexpr, IS_INTERPRETED: tl.constexpr):
    """Returns the low and the high halves of bytes, less 8, exactly."""
    low, high = raised_nibbles(packed, dtype, IS_INTERPRETED)
    more: tl.constexpr = 136.0 if dtype == tl.bfloat16 else 1032.0
    return low - more, high - more


@triton.jit
def signed_bytes(packed, dtype: tl.constexpr, IS_INTERPRETED: tl.constexpr):
    """Returns int8 values as numbers, exactly.

    In bfloat16, which has seven bits behind the leading one, (128 + the low seven bits) - (128, or
    256 if the sign is set) is the value.
    """
    if IS_INTERPRETED:
        values = packed.to(tl.float32).to(dtype)
    elif dtype == tl.bfloat16:
        low, sign = tl.inline_asm_elementwise(
            """
            {
            .reg .b32 low, sign;
            and.b32 low, $4, 0x7F7F7F7F;
            and.b32 sign, $4, 0x80808080;
            prmt.b32 $0, low, 0x43434343, 0x4140;
            prmt.b32 $1, low, 0x43434343, 0x4342;
            prmt.b32 $2, sign, 0x43434343, 0x4140;
            prmt.b32 $3, sign, 0x43434343, 0x4342;
            }
            """,
            "=r,=r,=r,=r,r",
            [packed],
            dtype=(tl.bfloat16, tl.bfloat16),
            is_pure=True,
            pack=4,
        )
        values = low - sign
    else:
        values = tl.inline_asm_elementwise(
            """
            {
            .reg .b32 shifted;
            xor.b32 shifted, $2, 0x80808080;
            prmt.b32 $0, shifted, 0x64646464, 0x4140;
            prmt.b32 $1, shifted, 0x64646464, 0x4342;
            }
            """,
            "=r,=r,r",
            [packed],
            dtype=tl.float16,
            is_pure=True,
            pack=4,
        )
        values = values - 1152.0
    return values


@triton.jit
def ones_like(packed, dtype: tl.constexpr, IS_INTERPRETED: tl.constexpr):
    """Returns ones in the shape of `packed`, for the sum of `x` by a product beside the weight's.

    They seem to be made of `packed`. Of a constant the compiler would lay the product out in
    another way, and so `x`, which its pipeline would then not fetch ahead.
    """
    if IS_INTERPRETED:
        ones = tl.full(packed.shape, 1.0, tl.float32).to(dtype)
    elif dtype == tl.bfloat16:
        ones = tl.inline_asm_elementwise(
            "mov.b32 $0, 0x3F803F80; mov.b32 $1, 0x3F803F80;",
            "=r,=r,r",
            [packed],
            dtype=tl.bfloat16,
            is_pure=True,
            pack=4,
        )
    else:
        ones = tl.inline_asm_elementwise(
            "mov.b32 $0, 0x3C003C00; mov.b32 $1, 0x3C003C00;",
            "=r,=r,r",
            [packed],
            dtype=tl.float16,
            is_pure=True,
            pack=4,
        )
    return ones
