//! The transforms of [`winograd`](super::winograd) in whole numbers: which there are, what they do to a kernel, an input
//! and sums, and where they are exact. Knows no tensors.
//!
//! Winograd's transforms G, B and A have fractions in G only. Its rows are scaled here until all are whole, and what
//! that adds to the sums is taken away at the end. Sums are computed modulo 2^32, so only what they are in the end has to
//! fit, not what they pass through.

/// Taps of the kernel.
pub(super) const TAPS: usize = 9;

/// Most numbers of a transformed tile in one direction.
pub(super) const SIDE_MAX: usize = 6;

/// Most outputs of a tile in one direction.
pub(super) const OUTPUTS_MAX: usize = 4;

/// B^T d of F4 for one column of six, in the arithmetic of whatever registers.
macro_rules! f4_input {
    ($d:expr, $add:expr, $sub:expr, $four_times:expr) => {{
        let (d, add, sub, four_times) = ($d, $add, $sub, $four_times);
        let (a, b) = (sub(d[4], four_times(d[2])), sub(d[3], four_times(d[1])));
        let (c, half) = (sub(d[4], d[2]), sub(d[3], d[1]));
        let e = add(half, half);
        [
            add(four_times(sub(d[0], d[2])), c),
            add(a, b),
            sub(a, b),
            add(c, e),
            sub(c, e),
            sub(sub(d[5], d[3]), add(e, e)),
        ]
    }};
}
#[cfg(target_arch = "x86_64")]
pub(super) use f4_input;

/// A^T m of F4 for one column of six, in the arithmetic of whatever registers.
macro_rules! f4_output {
    ($m:expr, $add:expr, $sub:expr, $four_times:expr) => {{
        let (m, add, sub, four_times) = ($m, $add, $sub, $four_times);
        let (sum, difference) = (add(m[1], m[2]), sub(m[1], m[2]));
        let (far_sum, far_difference) = (add(m[3], m[4]), sub(m[3], m[4]));
        [
            sub(add(m[0], far_sum), four_times(sum)),
            sub(far_difference, add(difference, difference)),
            sub(far_sum, sum),
            add(sub(m[5], difference), add(far_difference, far_difference)),
        ]
    }};
}
#[cfg(target_arch = "x86_64")]
pub(super) use f4_output;

/// One of Winograd's transforms for kernels of 3x3, named by the outputs that a tile has in each direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transform {
    /// F(2x2,3x3): 16 products instead of 36 for 4 outputs.
    F2,
    /// F(4x4,3x3): 36 products instead of 144 for 16 outputs.
    F4,
}

impl Transform {
    /// All of them.
    pub const ALL: [Transform; 2] = [Transform::F2, Transform::F4];

    /// Outputs of a tile in each direction.
    pub const fn outputs(self) -> usize {
        match self {
            Transform::F2 => 2,
            Transform::F4 => 4,
        }
    }

    /// Inputs of a tile in each direction.
    pub const fn side(self) -> usize {
        self.outputs() + 2
    }

    /// Numbers that a tile of the input, and a kernel, become: products for all outputs of a tile.
    pub const fn positions(self) -> usize {
        self.side() * self.side()
    }

    /// Whether outputs are exact with kernels `codes`, `[out, 9, inputs]`, and every input.
    ///
    /// 16 bits are enough for a transformed input (F2: 4 * 255; F4: 68 * 255) and kernel (9 * 128; 49 * 128). A sum is
    /// found by a division of its 32 bits by 4 or 9 * 64, of which the powers of two lose bits: what is left of them, 30
    /// or 26, must hold it.
    pub fn exact(self, codes: &[i8], inputs: usize) -> bool {
        let bits = match self {
            Transform::F2 => 30,
            Transform::F4 => 26,
        };
        let most = ((1i64 << (bits - 1)) - 1) / 255;
        // Inputs are not negative, so a sum is largest where they are 255 at all codes of one sign, and 0 elsewhere.
        codes.chunks_exact(TAPS * inputs).all(|kernel| {
            let [positive, negative] = signed_sums(kernel);
            positive <= most && negative <= most
        })
    }

    /// G g of one column of a kernel, scaled: by 2 for F2; for F4 its rows by 24, -6, -6, 24, 24 and 6.
    #[inline(always)]
    pub(super) fn kernel(self, [a, b, c]: [i16; 3]) -> [i16; SIDE_MAX] {
        match self {
            Transform::F2 => [2 * a, a + b + c, a - b + c, 2 * c, 0, 0],
            Transform::F4 => {
                let (even, odd) = (a + 4 * c, 2 * b);
                [6 * a, a + b + c, a - b + c, even + odd, even - odd, 6 * c]
            }
        }
    }

    /// B^T d of one column of an input.
    #[inline(always)]
    pub(super) fn input(self, d: [i16; SIDE_MAX]) -> [i16; SIDE_MAX] {
        match self {
            Transform::F2 => [d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3], 0, 0],
            Transform::F4 => f4_input!(d, |a: i16, b| a + b, |a: i16, b| a - b, |a: i16| 4 * a),
        }
    }

    /// A^T m of one column of products. Output `i` is a multiple of what it should be: see
    /// [`Transform::powers`].
    #[inline(always)]
    pub(super) fn output(self, m: [i32; SIDE_MAX]) -> [i32; OUTPUTS_MAX] {
        let (add, sub) = (i32::wrapping_add, i32::wrapping_sub);
        match self {
            Transform::F2 => [add(m[0], add(m[1], m[2])), sub(sub(m[1], m[2]), m[3]), 0, 0],
            Transform::F4 => f4_output!(m, add, sub, |a: i32| a.wrapping_mul(4)),
        }
    }

    /// What an output in each direction is multiplied by: three for F4, times two to the power of this.
    pub(super) const fn powers(self) -> [i32; OUTPUTS_MAX] {
        match self {
            Transform::F2 => [1; OUTPUTS_MAX],
            Transform::F4 => [3, 2, 1, 1],
        }
    }

    /// The sum that the output in line `y` and column `x` of a tile is a multiple of.
    #[inline(always)]
    pub(super) fn sum(self, y: usize, x: usize, output: i32) -> i32 {
        let multiple = match self {
            Transform::F2 => output,
            Transform::F4 => output.wrapping_mul(NINTH),
        };
        multiple >> (self.powers()[y] + self.powers()[x])
    }
}

/// Codes whose sum 16 bits hold, so that the baseline adds eight of them at once.
const SUMMED: usize = 128;

/// Sum of the positive codes, and of the others without their sign.
fn signed_sums(codes: &[i8]) -> [i64; 2] {
    let mut all = [0; 2];
    for codes in codes.chunks(SUMMED) {
        let mut sums = [0i16; 2];
        for &code in codes {
            let code = i16::from(code);
            sums[0] += code.max(0);
            sums[1] -= code.min(0);
        }
        all.iter_mut().zip(sums).for_each(|(all, sum)| *all += i64::from(sum));
    }
    all
}

/// What 9 is multiplied by to become 1 modulo 2^32: with it a multiple of nine is divided.
pub(super) const NINTH: i32 = 0x38E3_8E39;

#[cfg(test)]
mod tests {
    use super::*;

    /// What an output in each direction is multiplied by.
    fn scale(transform: Transform, i: usize) -> i32 {
        let odd = if transform == Transform::F4 { 3 } else { 1 };
        odd << transform.powers()[i]
    }

    /// One output line of a convolution in one direction, through the transforms.
    fn line(transform: Transform, kernel: [i16; 3], input: [i16; SIDE_MAX]) -> [i32; OUTPUTS_MAX] {
        let (u, v) = (transform.kernel(kernel), transform.input(input));
        transform.output(std::array::from_fn(|i| i32::from(u[i]) * i32::from(v[i])))
    }

    #[test]
    fn codes_are_summed_by_sign() {
        assert_eq!(signed_sums(&[]), [0, 0]);
        assert_eq!(signed_sums(&[-128; 300]), [0, 300 * 128]);
        let codes: Vec<i8> = (0..1000).map(|i| (i * 89 % 256) as u8 as i8).collect();
        let sum = |sign: i64| codes.iter().map(|&code| (i64::from(code) * sign).max(0)).sum::<i64>();
        assert_eq!(signed_sums(&codes), [sum(1), sum(-1)]);
    }

    #[test]
    fn a_line_is_its_scale_times_the_convolution() {
        let kernel = [-128, 127, 3];
        let input = [255, 0, 17, 200, 255, 90];
        for transform in Transform::ALL {
            let got = line(transform, kernel, input);
            for i in 0..transform.outputs() {
                let want: i32 = (0..3).map(|t| i32::from(kernel[t]) * i32::from(input[i + t])).sum();
                assert_eq!(got[i], scale(transform, i) * want, "{transform:?} {i}");
            }
        }
    }

    #[test]
    fn transformed_numbers_fit_sixteen_bits() {
        // Each row's coefficients, read off from unit vectors.
        for transform in Transform::ALL {
            let unit = |at: usize, len: usize| -> [i16; SIDE_MAX] {
                std::array::from_fn(|i| i16::from(i == at && at < len))
            };
            let rows: [Vec<i64>; SIDE_MAX] = std::array::from_fn(|row| {
                (0..transform.side()).map(|at| transform.input(unit(at, SIDE_MAX))[row].into()).collect()
            });
            let kernels: [Vec<i64>; SIDE_MAX] = std::array::from_fn(|row| {
                (0..3)
                    .map(|at| {
                        let [a, b, c, ..] = unit(at, 3);
                        transform.kernel([a, b, c])[row].into()
                    })
                    .collect()
            });
            for (a, b) in (0..transform.side()).flat_map(|a| (0..transform.side()).map(move |b| (a, b))) {
                let products = |a: &[i64], b: &[i64]| -> Vec<i64> {
                    a.iter().flat_map(|a| b.iter().map(move |b| a * b)).collect()
                };
                let inputs = products(&rows[a], &rows[b]);
                let positive: i64 = inputs.iter().map(|c| c.max(&0)).sum();
                let negative: i64 = inputs.iter().map(|c| c.min(&0)).sum();
                assert!(positive * 255 <= 32767 && negative * 255 >= -32768, "{transform:?} {a} {b}");
                let codes: i64 = products(&kernels[a], &kernels[b]).iter().map(|c| c.abs()).sum();
                assert!(codes * 128 <= 32767, "{transform:?} {a} {b}");
            }
        }
    }

    #[test]
    fn nine_times_its_inverse_is_one() {
        assert_eq!(NINTH.wrapping_mul(9), 1);
    }

    #[test]
    fn sums_too_large_are_not_exact() {
        for (transform, most) in [(Transform::F2, (1 << 29) / 255), (Transform::F4, (1 << 25) / 255)] {
            let inputs = (most / (TAPS * 127)) + 1;
            // Half of the codes have the other sign, and count by themselves.
            let codes = |positive: usize| -> Vec<i8> {
                (0..TAPS * inputs * 2).map(|i| if i < positive { 127 } else { -1 }).collect()
            };
            assert!(transform.exact(&codes(most / 127), 2 * inputs), "{transform:?}");
            assert!(!transform.exact(&codes(most / 127 + 1), 2 * inputs), "{transform:?}");
        }
    }
}
