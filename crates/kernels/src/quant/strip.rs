//! Thirty-two columns of some rows: what a panel of a product wants, without the rest of its blocks.

use super::{GgmlType, bf16, f16, f32, q4_0, q4_1, q5_0, q5_1, q8_0};
use crate::{quant_k, simd::vectorised};

/// Calls `$block` with the block that holds the values of each row, in formats of 32 values; with
/// `; $part`, with the block of 256 and which 32 of it. A macro, as `each` of the
/// module above is, and for its reason.
macro_rules! strip {
    ($bytes:ident, $at:ident, $stride:ident, $out:ident, $size:literal, $block:path) => {{
        let blocks = $bytes.as_chunks::<$size>().0;
        for (r, y) in $out.iter_mut().enumerate() {
            $block(&blocks[($at + r * $stride) / 32], y);
        }
    }};
    ($bytes:ident, $at:ident, $stride:ident, $out:ident, $size:literal; $part:path) => {{
        let blocks = $bytes.as_chunks::<$size>().0;
        for (r, y) in $out.iter_mut().enumerate() {
            let at = $at + r * $stride;
            $part(&blocks[at / 256], at % 256 / 32, y);
        }
    }};
}

vectorised! {
    /// Values `at..at + 32`, and as many `stride`, `2·stride`, … after them. Both are multiples of 32,
    /// so that no 32 values lie in two blocks of any format.
    pub(crate) fn strip(
        ty: GgmlType,
        bytes: &[u8],
        at: usize,
        stride: usize,
        out: &mut [[f32; 32]],
    ) {
        debug_assert!(at.is_multiple_of(32) && stride.is_multiple_of(32), "whole blocks");
        match ty {
            GgmlType::F32 => strip!(bytes, at, stride, out, 128, f32s),
            GgmlType::F16 => strip!(bytes, at, stride, out, 64, f16s),
            GgmlType::BF16 => strip!(bytes, at, stride, out, 64, bf16s),
            GgmlType::Q8_0 => strip!(bytes, at, stride, out, 34, q8_0),
            GgmlType::Q4_0 => strip!(bytes, at, stride, out, 18, q4_0),
            GgmlType::Q4_1 => strip!(bytes, at, stride, out, 20, q4_1),
            GgmlType::Q5_0 => strip!(bytes, at, stride, out, 22, q5_0),
            GgmlType::Q5_1 => strip!(bytes, at, stride, out, 24, q5_1),
            GgmlType::Q2_K => strip!(bytes, at, stride, out, 84; quant_k::q2_k_part),
            GgmlType::Q3_K => strip!(bytes, at, stride, out, 110; quant_k::q3_k_part),
            GgmlType::Q4_K => strip!(bytes, at, stride, out, 144; quant_k::q4_k_part),
            GgmlType::Q5_K => strip!(bytes, at, stride, out, 176; quant_k::q5_k_part),
            GgmlType::Q6_K => strip!(bytes, at, stride, out, 210; quant_k::q6_k_part),
        }
    }
}

/// Plain values as blocks of 32.
macro_rules! plain {
    ($name:ident, $bytes:literal, $size:literal, $value:path) => {
        #[inline(always)]
        fn $name(b: &[u8; $bytes], y: &mut [f32; 32]) {
            for (b, y) in b.as_chunks::<$size>().0.iter().zip(y.as_chunks_mut::<1>().0) {
                $value(b, y);
            }
        }
    };
}

plain!(f32s, 128, 4, f32);
plain!(f16s, 64, 2, f16);
plain!(bf16s, 64, 2, bf16);
