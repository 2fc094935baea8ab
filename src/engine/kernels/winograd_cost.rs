//! Which of Winograd's transforms a convolution gains by, if any: cycles of one core, counted from what a step does in
//! one. The figures come from a Sapphire Rapids; no other processor was measured.

use super::Window;
use super::isa::Isa;
use super::winograd_tiles::{DEPTH, Steps, is_plain};
use super::winograd_transform::{TAPS, Transform};

/// The transform by which a convolution with kernels `codes`, `[out, 9, inputs]`, is fastest, and exact.
pub fn best_transform(
    isa: Isa,
    window: &Window,
    codes: &[i8],
    out: usize,
    inputs: usize,
) -> Option<Transform> {
    if !is_plain(window) || inputs < 16 || out < 8 {
        return None;
    }
    let core = Core::of(isa, codes)?;
    let weights = inputs.next_multiple_of(DEPTH) * out.next_multiple_of(8);
    let direct = {
        let (products, bytes) = core.direct;
        cycles(window.rows() * TAPS * weights / products, TAPS * weights * bytes)
    };
    let by = |way: &Way| {
        let (outputs, positions) = (way.transform.outputs(), way.transform.positions());
        let tiles = window.batch * window.out_h.div_ceil(outputs) * window.out_w.div_ceil(outputs);
        let blocks = tiles.div_ceil(Steps::new(isa, way.transform).block(inputs));
        let products = tiles * positions * weights / core.products;
        let steps = way.input * inputs.div_ceil(16) + way.output * out.div_ceil(16);
        cycles(products, positions * weights * size_of::<i16>() * blocks) + tiles * steps
    };
    let ways = core.ways.iter().map(|way| (by(way), way.transform));
    // What is about as fast is not worth the memory.
    let gains = ways.filter(|(by, transform)| by * 10 < direct * 9 && transform.exact(codes, inputs));
    gains.min_by_key(|(cycles, _)| *cycles).map(|(_, transform)| transform)
}

/// What a core does.
struct Core {
    /// Products of a direct convolution in a cycle, and bytes of a weight there.
    direct: (usize, usize),
    /// Products of 16 bits in a cycle.
    products: usize,
    ways: &'static [Way],
}

/// Cycles of the steps of a transform, for one tile.
struct Way {
    transform: Transform,
    /// For 16 channels of the input.
    input: usize,
    /// For 16 channels of the output.
    output: usize,
}

impl Core {
    /// Of the instruction sets that gain by a transform. Those with dot products of bytes on 256 bits were not measured;
    /// matrix tiles gain nothing.
    fn of(isa: Isa, codes: &[i8]) -> Option<Core> {
        #[cfg(not(target_arch = "x86_64"))]
        let _ = codes;
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2(_) => {
                // Products of small codes add in 16 bits.
                let small = codes.iter().all(|code| code.unsigned_abs() <= 64);
                Some(Core {
                    direct: if small { (34, 1) } else { (24, 2) },
                    products: 24,
                    ways: &[
                        Way { transform: Transform::F2, input: 60, output: 60 },
                        Way { transform: Transform::F4, input: 150, output: 300 },
                    ],
                })
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni(_) => Some(Core {
                direct: (117, 1),
                products: 61,
                ways: &[Way { transform: Transform::F4, input: 90, output: 220 }],
            }),
            _ => None,
        }
    }
}

/// Cycles of products whose weights come from the level-3 cache, four bytes a cycle; those of a small convolution come
/// while others are used. The two overlap, but not all of the time.
fn cycles(products: usize, bytes: usize) -> usize {
    let stream = if bytes > 512 << 10 { bytes / 4 } else { 0 };
    products.max(stream) + products.min(stream) / 3
}

#[cfg(test)]
mod tests {
    use super::super::testing::{window, windows};
    use super::*;

    #[test]
    fn what_gains_is_large_and_plain() {
        let codes = |inputs: usize, outputs: usize| [90, -90].repeat(outputs * TAPS * inputs / 2);
        let plain = |batch, size| window(batch, (size, size), (3, 3), (1, 1), (1, 1), (1, 1));
        let best = |isa, window: &Window, inputs: usize, outputs: usize| {
            best_transform(isa, window, &codes(inputs, outputs), outputs, inputs)
        };
        let large = plain(1, 56);
        for isa in Isa::available() {
            let gains = |avx2, wide| match isa.name() {
                "avx2" => avx2,
                "avx512vnni" => wide,
                _ => None,
            };
            let (two, four) = (Some(Transform::F2), Some(Transform::F4));
            assert_eq!(best(isa, &large, 64, 64), gains(four, four));
            // Of 8 x 8 outputs most are used, and the weights are read for few.
            assert_eq!(best(isa, &plain(1, 7), 512, 512), gains(two, None));
            assert_eq!(best(isa, &plain(8, 14), 256, 256), gains(four, four));
            assert_eq!(best(isa, &large, 3, 64), None);
            assert_eq!(best(isa, &plain(1, 1), 512, 512), None);
            // Too large for F4.
            let codes = vec![127; 32 * TAPS * 1024];
            assert_eq!(best_transform(isa, &large, &codes, 32, 1024), gains(two, None));
            let other =
                |window: &Window| window.kernel_h != 3 || window.stride_h != 1 || window.dilation_h != 1;
            for window in windows().iter().filter(|window| other(window)) {
                assert_eq!(best(isa, window, 64, 64), None);
            }
        }
    }
}
