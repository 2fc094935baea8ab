//! Decimal text to numbers, fast: the digits as one whole number, which a float scales once. Gives up where the result
//! could be off in its last bit, or where the text is not the plain kind: then the caller takes the slow way, which is
//! always right.

/// Powers of ten that an f64 holds exactly.
const POWERS: [f64; 23] = [
    1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18,
    1e19, 1e20, 1e21, 1e22,
];
/// Digits that a u64 always holds.
const DIGITS_MAX: usize = 19;

/// `digits · 10^exponent`.
struct Decimal {
    negative: bool,
    digits: u64,
    exponent: i32,
    // Where the text goes on.
    end: usize,
}

/// The f32 that a number at the start of `text` means, and its length; `None` is for the slow way.
#[inline(always)]
pub(super) fn f32(text: &[u8]) -> Option<(f32, usize)> {
    let decimal = read(text)?;
    let value = scale(&decimal)?;
    // Two roundings to f64 may be off by less than two of its last places. That is of no account unless a border between
    // two f32 lies so near: half a last place of an f32 is 2^28 of those of an f64.
    let below = value.to_bits() & 0x1fff_ffff;
    if below.abs_diff(0x1000_0000) <= 4 || value > f64::from(f32::MAX) {
        return None;
    }
    // The sign as a bit: a branch would be mistaken every other time.
    let sign = u32::from(decimal.negative) << 31;
    Some((f32::from_bits((value as f32).to_bits() | sign), decimal.end))
}

/// The same for f64.
pub(super) fn f64(text: &[u8]) -> Option<(f64, usize)> {
    let decimal = read(text)?;
    // Both are exact then, so there is one rounding.
    if decimal.digits > 1 << 53 {
        return None;
    }
    let value = scale(&decimal)?;
    Some((if decimal.negative { -value } else { value }, decimal.end))
}

/// The whole number at the start of `text`, and its length; `None` is for the slow way.
#[inline(always)]
pub(super) fn integer(text: &[u8]) -> Option<(i64, usize)> {
    let negative = text.first() == Some(&b'-');
    let start = usize::from(negative);
    let mut digits = 0;
    let end = run(text, start, &mut digits);
    let count = end - start;
    // 18 digits fit an i64; a zero before others is no number of JSON, nor is one with a point or an exponent whole. Not
    // every type has a zero below zero.
    if count == 0 || count > 18 || (count > 1 && text[start] == b'0') || (negative && digits == 0) {
        return None;
    }
    if matches!(text.get(end), Some(b'.' | b'e' | b'E')) {
        return None;
    }
    let value = digits as i64;
    Some((if negative { -value } else { value }, end))
}

#[inline(always)]
fn scale(decimal: &Decimal) -> Option<f64> {
    let power = *POWERS.get(usize::try_from(decimal.exponent.unsigned_abs()).ok()?)?;
    let digits = decimal.digits as f64;
    Some(if decimal.exponent < 0 { digits / power } else { digits * power })
}

#[inline(always)]
fn read(text: &[u8]) -> Option<Decimal> {
    let mut decimal = match short(text) {
        Some(decimal) => decimal,
        None => long(text)?,
    };
    let end = decimal.end;
    if matches!(text.get(end), Some(b'e' | b'E')) {
        let sign = text.get(end + 1);
        let from = end + 1 + usize::from(matches!(sign, Some(b'+' | b'-')));
        let mut power = 0u64;
        decimal.end = run(text, from, &mut power);
        if decimal.end == from || decimal.end - from > 4 {
            return None;
        }
        let power = i32::try_from(power).ok()?;
        decimal.exponent += if sign == Some(&b'-') { -power } else { power };
    }
    Some(decimal)
}

/// What nearly every number looks like, up to its exponent: one digit, a point, up to 19 digits, and more text behind,
/// so that nothing has to be asked byte by byte.
#[inline(always)]
fn short(text: &[u8]) -> Option<Decimal> {
    let negative = text.first() == Some(&b'-');
    let start = usize::from(negative);
    let text = text.get(start..)?.first_chunk::<26>()?;
    let whole = u64::from(text[0].wrapping_sub(b'0'));
    if whole > 9 || text[1] != b'.' {
        return None;
    }
    let eight = |at: usize| digits(*text[at..].first_chunk().expect("26 bytes hold three eights"));
    let (mut fraction, mut count) = eight(2);
    if count == 8 {
        let (more, places) = eight(10);
        fraction = fraction * SHIFTS[places] + more;
        count += places;
        if places == 8 {
            let (more, places) = eight(18);
            // 19 digits at most; a zero before the point is none.
            if places > 2 + usize::from(whole == 0) {
                return None;
            }
            fraction = fraction * SHIFTS[places] + more;
            count += places;
        }
    }
    if count == 0 {
        return None;
    }
    let digits = whole * SHIFTS[count] + fraction;
    Some(Decimal { negative, digits, exponent: -(count as i32), end: start + 2 + count })
}

/// Any number, up to its exponent.
#[inline(never)]
fn long(text: &[u8]) -> Option<Decimal> {
    let negative = text.first() == Some(&b'-');
    let start = usize::from(negative);
    let mut digits = 0u64;
    let whole_end = run(text, start, &mut digits);
    let whole = whole_end - start;
    // No digit, or a zero before others: not a number of JSON.
    if whole == 0 || (whole > 1 && text[start] == b'0') {
        return None;
    }
    let mut end = whole_end;
    let mut exponent = 0;
    let mut count = whole;
    if text.get(end) == Some(&b'.') {
        let from = end + 1;
        end = run(text, from, &mut digits);
        if end == from {
            return None;
        }
        count += end - from;
        exponent = -i32::try_from(end - from).ok()?;
    }
    if count > DIGITS_MAX && count - leading_zeros(&text[start..end]) > DIGITS_MAX {
        return None;
    }
    Some(Decimal { negative, digits, exponent, end })
}

/// Appends the digits from `at` on to `number`, and gives where they end. More than 19 make the number meaningless.
fn run(text: &[u8], mut at: usize, number: &mut u64) -> usize {
    while let Some(eight) = text.get(at..).and_then(|rest| rest.first_chunk::<8>()) {
        let (digits, count) = digits(*eight);
        *number = number.wrapping_mul(SHIFTS[count]).wrapping_add(digits);
        at += count;
        if count < 8 {
            return at;
        }
    }
    while let Some(&digit) = text.get(at).filter(|byte| byte.is_ascii_digit()) {
        *number = number.wrapping_mul(10).wrapping_add(u64::from(digit - b'0'));
        at += 1;
    }
    at
}

/// Powers of ten by digits.
const SHIFTS: [u64; 20] = {
    let mut powers = [1; 20];
    let mut digits = 1;
    while digits < powers.len() {
        powers[digits] = powers[digits - 1] * 10;
        digits += 1;
    }
    powers
};

/// The number that the digits make with which eight bytes begin, and how many they are: without a branch for each.
#[inline(always)]
fn digits(bytes: [u8; 8]) -> (u64, usize) {
    const ONES: u64 = 0x0101_0101_0101_0101;
    let text = u64::from_le_bytes(bytes);
    // A digit is 0x30 and less than ten: its upper half is 3, and its lower one does not carry when six is added.
    let upper = (text & (ONES * 0xf0)) ^ (ONES * 0x30);
    let lower = ((text & (ONES * 0x0f)) + ONES * 6) & (ONES * 0xf0);
    let count = ((upper | lower).trailing_zeros() / 8) as usize;
    // The first digit is the lowest byte: those that are missing become zeros before it.
    let digits = (text & (ONES * 0x0f)).checked_shl(64 - 8 * count as u32).unwrap_or(0);
    // Pairs, then fours, then all.
    let pairs = (digits * 10 + (digits >> 8)) & 0x00ff_00ff_00ff_00ff;
    let fours = (pairs * 100 + (pairs >> 16)) & 0x0000_ffff_0000_ffff;
    ((fours * 10_000 + (fours >> 32)) & 0xffff_ffff, count)
}

/// Zeros before the first other digit.
fn leading_zeros(number: &[u8]) -> usize {
    number.iter().filter(|&&byte| byte != b'.').take_while(|&&byte| byte == b'0').count()
}

#[cfg(test)]
mod tests {
    /// Whether a number is read as f32 and as f64, alone and with others behind it; what is read must be right.
    fn check(text: &str) -> (bool, bool) {
        let followed = format!("{text}, -0.25, 17.0, 0.5, 1e3, 2.5]");
        let single = [text, &followed].map(|t| super::f32(t.as_bytes()));
        let double = [text, &followed].map(|t| super::f64(t.as_bytes()));
        for (value, end) in single.into_iter().flatten() {
            let want = text.parse::<f32>().unwrap().to_bits();
            assert_eq!((value.to_bits(), end), (want, text.len()), "{text}");
        }
        for (value, end) in double.into_iter().flatten() {
            let want = text.parse::<f64>().unwrap().to_bits();
            assert_eq!((value.to_bits(), end), (want, text.len()), "{text}");
        }
        let whole = [text, &followed].map(|t| super::integer(t.as_bytes()));
        for (value, end) in whole.into_iter().flatten() {
            assert_eq!((Ok(value), end), (text.parse::<i64>(), text.len()), "{text}");
        }
        assert_eq!(whole[0], whole[1], "{text}");
        assert_eq!(single[0], single[1], "{text}");
        assert_eq!(double[0], double[1], "{text}");
        (single[0].is_some(), double[0].is_some())
    }

    #[test]
    fn what_is_read_is_right_to_the_last_bit() {
        let mut state = 1u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            state >> 16
        };
        let (mut single, mut double, mut total) = (0, 0, 0);
        let mut count = |text: &str| {
            let (a, b) = check(text);
            single += u32::from(a);
            double += u32::from(b);
            total += 1;
        };
        for _ in 0..100_000 {
            let x = f32::from_bits(next() as u32);
            if !x.is_finite() {
                continue;
            }
            // As clients write them: f32, the same widened to f64, with an exponent, with few digits.
            count(&format!("{x:e}"));
            let x = (next() as f32 / (1u64 << 40) as f32) - 128.0;
            count(&format!("{x:?}"));
            count(&format!("{:?}", f64::from(x)));
            count(&format!("{:?}", f64::from(x) * 1e-5));
            count(&format!("{x:.3}"));
            count(&format!("{}", next()));
            count(&format!("{}", next() as i16 >> (next() % 16)));
            // Every number of places, with zeros before and behind.
            let places = (next() % 22) as usize;
            count(&format!("{}.{:0places$}", next() % 10, next() >> (next() % 48)));
            count(&format!("-0.{:0places$}", next() >> (next() % 48)));
        }
        assert!(single > total / 10 * 8, "{single} of {total}");
        assert!(double > total / 10 * 4, "{double} of {total}");
    }

    #[test]
    fn borders_between_two_floats_take_the_slow_way() {
        // 2^24 + 1 lies between two f32; the others come within a last place of such a border.
        for text in
            ["16777217", "16777217.0000000001", "0.50000002980232238769", "1.000000059604644775390625"]
        {
            check(text);
            assert!(super::f32(text.as_bytes()).is_none(), "{text}");
        }
    }

    #[test]
    fn whole_numbers_are_read_up_to_18_digits() {
        assert_eq!(super::integer(b"-128,0"), Some((-128, 4)));
        assert_eq!(super::integer(b"0]"), Some((0, 1)));
        assert_eq!(super::integer(b"999999999999999999"), Some((999_999_999_999_999_999, 18)));
        for text in ["", "-", "x", "01", "-0", "1.0", "1e2", "1000000000000000000"] {
            assert_eq!(super::integer(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn odd_spellings_are_left_to_the_slow_way() {
        let refused = [
            "",
            "-",
            "01",
            "00",
            "1.",
            ".5",
            "1e",
            "1e+",
            "NaN",
            "1e99999",
            "123456789012345678901",
            "0.1e",
            "+1",
            "1e400",
        ];
        for text in refused {
            assert!(super::f32(text.as_bytes()).is_none(), "{text}");
        }
        assert_eq!(super::f32(b"1.5,2"), Some((1.5, 3)));
        assert_eq!(super::f32(b"-0]"), Some((-0.0, 2)));
        assert_eq!(super::f64(b"0.000000000000000000012"), Some((1.2e-20, 23)));
        assert_eq!(super::f32(b"12345678"), Some((12_345_678.0, 8)));
        for (text, want) in
            [("1234567,", (1_234_567, 7)), ("/1234567", (0, 0)), ("12:34567", (12, 2)), ("00000009", (9, 8))]
        {
            assert_eq!(super::digits(text.as_bytes().try_into().unwrap()), want, "{text}");
        }
    }
}
