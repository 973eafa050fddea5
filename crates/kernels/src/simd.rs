//! Run-time choice of the instruction set for loops the compiler vectorises.

use std::sync::OnceLock;

/// Instruction sets with a compiled version of every loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// What every processor of the architecture has.
    Portable,
    /// AVX2 with fused multiply-add.
    Avx2,
    /// AVX-512 F, VL, BW and DQ.
    Avx512,
    /// AVX-512 with dot products of bf16 pairs.
    Avx512Bf16,
}

/// The level in use: the processor's best, or what `LUTHIER_SIMD` (`portable`, `avx2`, `avx512`,
/// `avx512bf16`) asks for, never above what the processor has.
pub fn level() -> Level {
    static LEVEL: OnceLock<Level> = OnceLock::new();
    *LEVEL.get_or_init(|| {
        let asked = match std::env::var("LUTHIER_SIMD").as_deref() {
            Ok("portable") => Level::Portable,
            Ok("avx2") => Level::Avx2,
            Ok("avx512") => Level::Avx512,
            _ => Level::Avx512Bf16,
        };
        asked.min(best())
    })
}

/// The most that this processor has.
#[cfg(target_arch = "x86_64")]
pub fn best() -> Level {
    if !(is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")) {
        return Level::Portable;
    }
    let wide = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq");
    match wide {
        true if is_x86_feature_detected!("avx512bf16") => Level::Avx512Bf16,
        true => Level::Avx512,
        false => Level::Avx2,
    }
}

/// The most that this processor has.
#[cfg(not(target_arch = "x86_64"))]
pub fn best() -> Level {
    Level::Portable
}

/// Whether bf16 products have instructions of their own here; without, they cost as much as f32.
pub fn has_bf16() -> bool {
    level() >= Level::Avx512Bf16
}

/// Defines a function whose body is compiled once per [`Level`] and chosen at run time. The body
/// uses no fused multiply-add unless it says so, hence every level computes the same bits.
macro_rules! vectorised {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        $vis fn $name($($arg: $ty),*) $(-> $ret)? {
            #[allow(clippy::too_many_arguments)]
            #[inline(always)]
            fn body($($arg: $ty),*) $(-> $ret)? $body
            #[cfg(target_arch = "x86_64")]
            {
                #[allow(clippy::too_many_arguments)]
                #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx2,fma")]
                fn avx512($($arg: $ty),*) $(-> $ret)? { body($($arg),*) }
                #[allow(clippy::too_many_arguments)]
                #[target_feature(enable = "avx2,fma")]
                fn avx2($($arg: $ty),*) $(-> $ret)? { body($($arg),*) }
                match $crate::simd::level() {
                    // SAFETY: `level` reports a set only when the processor has all of it.
                    $crate::simd::Level::Avx512 | $crate::simd::Level::Avx512Bf16 => unsafe { avx512($($arg),*) },
                    // SAFETY: as above.
                    $crate::simd::Level::Avx2 => unsafe { avx2($($arg),*) },
                    $crate::simd::Level::Portable => body($($arg),*),
                }
            }
            #[cfg(not(target_arch = "x86_64"))]
            body($($arg),*)
        }
    };
}
pub(crate) use vectorised;
