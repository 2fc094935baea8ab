//! Reads JSON text straight into tensors, without a tree in between. Knows nothing of models.
//!
//! `serde_json` refuses the tokens `NaN` and `Infinity`, which Triton's clients send, and its `Value` takes
//! 32 bytes and a branch for every number. Small values (`parameters`) still go through it.

use std::borrow::Cow;

use crate::api::wire::{Error, decimal};
use crate::engine::tensor::{Element, Tensor};

/// Deepest nesting that is read; a tensor has fewer dimensions than this.
const DEPTH_MAX: u32 = 64;

/// A position in JSON text.
pub(super) struct Scanner<'a> {
    text: &'a [u8],
    at: usize,
    depth: u32,
}

impl<'a> Scanner<'a> {
    /// Starts at the beginning of `text`.
    pub(super) fn new(text: &'a [u8]) -> Scanner<'a> {
        Scanner { text, at: 0, depth: 0 }
    }

    /// Calls `field` with each key of an object; `field` must read the value.
    pub(super) fn object(
        &mut self,
        mut field: impl FnMut(&mut Scanner<'a>, &str) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.open(b'{', "an object")?;
        if !self.take(b'}') {
            loop {
                let key = self.string()?;
                self.demand(b':', "`:` after a key")?;
                field(self, &key).map_err(|error| error.within(&key))?;
                if self.take(b'}') {
                    break;
                }
                self.demand(b',', "`,` or `}` in an object")?;
            }
        }
        self.depth -= 1;
        Ok(())
    }

    /// Calls `item` before each element of an array; `item` must read it.
    pub(super) fn array(
        &mut self,
        mut item: impl FnMut(&mut Scanner<'a>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.open(b'[', "an array")?;
        if !self.take(b']') {
            loop {
                item(self)?;
                if self.take(b']') {
                    break;
                }
                self.demand(b',', "`,` or `]` in an array")?;
            }
        }
        self.depth -= 1;
        Ok(())
    }

    /// A string; borrowed where it has no escapes.
    pub(super) fn string(&mut self) -> Result<Cow<'a, str>, Error> {
        let raw = self.string_span()?;
        let inner = &raw[1..raw.len() - 1];
        if inner.contains(&b'\\') || inner.iter().any(|&b| b < 0x20) {
            return serde_json::from_slice(raw).map(Cow::Owned).map_err(|e| self.error(e.to_string()));
        }
        std::str::from_utf8(inner).map(Cow::Borrowed).map_err(|_| self.error("a string is not UTF-8"))
    }

    /// Any value as a tree, for the small ones.
    pub(super) fn value(&mut self) -> Result<serde_json::Value, Error> {
        let start = self.at;
        let raw = self.skip()?;
        serde_json::from_slice(raw).map_err(|e| {
            self.at = start;
            self.error(e.to_string())
        })
    }

    /// A whole number of any sign.
    pub(super) fn integer(&mut self) -> Result<i64, Error> {
        self.peek();
        let token = self.number_token()?;
        token.parse().map_err(|_| self.error(format!("`{token}` is not a whole number of 64 bits")))
    }

    /// Steps over any value and gives its text. The grammar is checked.
    pub(super) fn skip(&mut self) -> Result<&'a [u8], Error> {
        let first = self.peek();
        let start = self.at;
        match first {
            Some(b'{') => self.object(|s, _| s.skip().map(drop))?,
            Some(b'[') => self.array(|s| s.skip().map(drop))?,
            Some(b'"') => drop(self.string()?),
            Some(b't') => self.word("true")?,
            Some(b'f') => self.word("false")?,
            Some(b'n') => self.word("null")?,
            _ => drop(self.number_token()?),
        }
        Ok(&self.text[start..self.at])
    }

    /// Steps over an array fast: only brackets and strings are looked at. Whoever reads the text checks it.
    /// Gives where the text starts, and the text.
    pub(super) fn array_span(&mut self) -> Result<(usize, &'a [u8]), Error> {
        if self.peek() != Some(b'[') {
            return Err(self.error("expected an array"));
        }
        let start = self.at;
        let mut depth = 0u32;
        while let Some(step) = memchr::memchr3(b'[', b']', b'"', &self.text[self.at..]) {
            self.at += step;
            match self.text[self.at] {
                b'[' => depth += 1,
                b']' => {
                    depth -= 1;
                    if depth == 0 {
                        self.at += 1;
                        return Ok((start, &self.text[start..self.at]));
                    }
                }
                _ => {
                    self.string_span()?;
                    continue;
                }
            }
            self.at += 1;
        }
        self.at = self.text.len();
        Err(self.error("the array does not end"))
    }

    /// Numbers of a flat or nested array, in order, up to `max`.
    pub(super) fn numbers<T: Number>(&mut self, max: usize) -> Result<Vec<T>, Error> {
        // A number and its comma take two bytes: the text bounds what is reserved.
        let mut values = Vec::with_capacity(max.min(self.text.len() / 2 + 1));
        self.numbers_into(&mut values, max)?;
        Ok(values)
    }

    fn numbers_into<T: Number>(&mut self, values: &mut Vec<T>, max: usize) -> Result<(), Error> {
        self.open(b'[', "an array")?;
        if !self.take(b']') {
            loop {
                if self.peek() == Some(b'[') {
                    self.numbers_into(values, max)?;
                } else {
                    let value = T::read(self)?;
                    if values.len() == max {
                        return Err(self.error(format!("more values than the shape holds ({max})")));
                    }
                    values.push(value);
                }
                match self.peek() {
                    Some(b',') => self.at += 1,
                    Some(b']') => break,
                    _ => return Err(self.unexpected("`,` or `]` in an array")),
                }
            }
            self.at += 1;
        }
        self.depth -= 1;
        Ok(())
    }

    /// Nothing but white space may follow.
    pub(super) fn end(&mut self) -> Result<(), Error> {
        match self.peek() {
            None => Ok(()),
            Some(_) => Err(self.error("more text after the end of the value")),
        }
    }

    /// Reads `true` or `false`, or one of the numbers 0 and 1.
    fn bool(&mut self) -> Result<u8, Error> {
        match self.peek() {
            Some(b't') => self.word("true").map(|()| 1),
            Some(b'f') => self.word("false").map(|()| 0),
            Some(b'0'..=b'9' | b'-') => match self.number_token()? {
                "0" => Ok(0),
                "1" => Ok(1),
                token => Err(self.error(format!("`{token}` is not a BOOL"))),
            },
            _ => Err(self.unexpected("`true` or `false`")),
        }
    }

    /// The text of a number as JSON spells it, or `NaN`, `Infinity`, `Inf` with an optional minus.
    fn number_token(&mut self) -> Result<&'a str, Error> {
        let start = self.at;
        let text = self.text;
        let digits = |mut at: usize| {
            while text.get(at).is_some_and(u8::is_ascii_digit) {
                at += 1;
            }
            at
        };
        let mut at = start + usize::from(text.get(start) == Some(&b'-'));
        match text.get(at) {
            Some(b'0') => at += 1,
            Some(b'1'..=b'9') => at = digits(at),
            Some(b'N' | b'I') => {
                for word in ["NaN", "Infinity", "Inf"] {
                    if text[at..].starts_with(word.as_bytes()) {
                        at += word.len();
                        break;
                    }
                }
            }
            _ => return Err(self.unexpected("a number")),
        }
        if text.get(at) == Some(&b'.') {
            let end = digits(at + 1);
            if end == at + 1 {
                return Err(self.broken_off(end));
            }
            at = end;
        }
        if matches!(text.get(at), Some(b'e' | b'E')) {
            let sign = usize::from(matches!(text.get(at + 1), Some(b'+' | b'-')));
            let end = digits(at + 1 + sign);
            if end == at + 1 + sign {
                return Err(self.broken_off(end));
            }
            at = end;
        }
        let token = std::str::from_utf8(&text[start..at]).unwrap_or_default();
        if token.is_empty() || token == "-" {
            return Err(self.unexpected("a number"));
        }
        self.at = at;
        Ok(token)
    }

    /// A number that begins here and has no digits where it must, at `end`.
    fn broken_off(&self, end: usize) -> Error {
        let token = String::from_utf8_lossy(&self.text[self.at..end]);
        self.error(format!("`{token}` is no number: a digit must follow"))
    }

    fn string_span(&mut self) -> Result<&'a [u8], Error> {
        if self.peek() != Some(b'"') {
            return Err(self.unexpected("a string"));
        }
        let start = self.at;
        let mut at = start + 1;
        while let Some(&byte) = self.text.get(at) {
            match byte {
                b'"' => {
                    self.at = at + 1;
                    return Ok(&self.text[start..self.at]);
                }
                b'\\' => at += 2,
                _ => at += 1,
            }
        }
        Err(self.error("a string does not end"))
    }

    fn open(&mut self, bracket: u8, what: &str) -> Result<(), Error> {
        if self.peek() != Some(bracket) {
            return Err(self.unexpected(what));
        }
        if self.depth == DEPTH_MAX {
            return Err(self.error(format!("nested deeper than {DEPTH_MAX} levels")));
        }
        self.at += 1;
        self.depth += 1;
        Ok(())
    }

    fn word(&mut self, word: &str) -> Result<(), Error> {
        if !self.text[self.at..].starts_with(word.as_bytes()) {
            return Err(self.unexpected(word));
        }
        self.at += word.len();
        Ok(())
    }

    /// The next byte that is not white space.
    pub(super) fn peek(&mut self) -> Option<u8> {
        while let Some(&byte) = self.text.get(self.at) {
            if !matches!(byte, b' ' | b'\n' | b'\r' | b'\t') {
                return Some(byte);
            }
            self.at += 1;
        }
        None
    }

    fn take(&mut self, byte: u8) -> bool {
        let found = self.peek() == Some(byte);
        self.at += usize::from(found);
        found
    }

    fn demand(&mut self, byte: u8, what: &str) -> Result<(), Error> {
        if self.take(byte) { Ok(()) } else { Err(self.unexpected(what)) }
    }

    fn unexpected(&self, wanted: &str) -> Error {
        match self.text.get(self.at) {
            Some(&b) if b.is_ascii_graphic() => {
                self.error(format!("expected {wanted}, found `{}`", char::from(b)))
            }
            Some(&b) => self.error(format!("expected {wanted}, found byte 0x{b:02x}")),
            None => self.error(format!("expected {wanted}, but the text ends")),
        }
    }

    /// An error at this position, told as line and column, both from 1.
    pub(super) fn error(&self, reason: impl Into<String>) -> Error {
        let before = &self.text[..self.at.min(self.text.len())];
        let line = before.iter().filter(|&&b| b == b'\n').count() + 1;
        let column = before.iter().rev().take_while(|&&b| b != b'\n').count() + 1;
        Error::Json { line, column, reason: reason.into() }
    }
}

/// An element that JSON can carry.
pub(super) trait Number: Element {
    /// Reads one element.
    fn read(scanner: &mut Scanner<'_>) -> Result<Self, Error>;
}

macro_rules! floats {
    ($($float:ident),*) => { $(impl Number for $float {
        #[inline(always)]
        fn read(scanner: &mut Scanner<'_>) -> Result<$float, Error> {
            scanner.peek();
            if let Some((value, length)) = decimal::$float(&scanner.text[scanner.at..]) {
                scanner.at += length;
                return Ok(value);
            }
            let token = scanner.number_token()?;
            let value: $float = match token {
                "NaN" | "-NaN" => return Ok($float::NAN),
                "Infinity" | "Inf" => return Ok($float::INFINITY),
                "-Infinity" | "-Inf" => return Ok($float::NEG_INFINITY),
                _ => token.parse().map_err(|_| scanner.error(format!("`{token}` is not a number")))?,
            };
            if !value.is_finite() {
                let reason = format!("`{token}` is beyond the largest {}; spell it Infinity if meant", $float::DTYPE);
                return Err(scanner.error(reason));
            }
            Ok(value)
        }
    })* };
}
floats!(f32, f64);

macro_rules! integers {
    ($($integer:ident),*) => { $(impl Number for $integer {
        #[inline(always)]
        fn read(scanner: &mut Scanner<'_>) -> Result<$integer, Error> {
            scanner.peek();
            if let Some((value, length)) = decimal::integer(&scanner.text[scanner.at..])
                && let Ok(value) = value.try_into()
            {
                scanner.at += length;
                return Ok(value);
            }
            let token = scanner.number_token()?;
            token.parse().map_err(|_| {
                let dtype = $integer::DTYPE;
                scanner.error(if token.contains(['.', 'e', 'E']) {
                    format!("`{token}`: numbers of type {dtype} are written without point and exponent")
                } else {
                    format!("`{token}` is not a whole number that fits {dtype}")
                })
            })
        }
    })* };
}
integers!(i64, i32, i16, i8, u64, u32, u16, u8);

/// Reads an array of numbers that must fill `shape` exactly.
pub(super) fn tensor<T: Number>(text: &[u8], shape: &[usize], count: usize) -> Result<Tensor, Error> {
    let values = Scanner::new(text).numbers::<T>(count)?;
    fill(shape, count, &values)
}

/// Reads an array of `true` and `false` that must fill `shape` exactly; the elements are bytes 0 and 1.
pub(super) fn bool_tensor(text: &[u8], shape: &[usize], count: usize) -> Result<Tensor, Error> {
    fn bools(s: &mut Scanner<'_>, values: &mut Vec<u8>) -> Result<(), Error> {
        s.array(|s| match s.peek() {
            Some(b'[') => bools(s, values),
            _ => s.bool().map(|b| values.push(b)),
        })
    }
    let mut values = Vec::with_capacity(count.min(text.len()));
    bools(&mut Scanner::new(text), &mut values)?;
    fill(shape, count, &values)
}

fn fill<T: Number>(shape: &[usize], count: usize, values: &[T]) -> Result<Tensor, Error> {
    if values.len() != count {
        let reason = format!("{} values, but shape {shape:?} holds {count}", values.len());
        return Err(Error::Json { line: 0, column: 0, reason });
    }
    Ok(Tensor::from_slice(shape, values))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn floats(text: &str) -> Result<Vec<f32>, String> {
        let mut scanner = Scanner::new(text.as_bytes());
        let values = scanner.numbers::<f32>(100).map_err(|e| e.to_string())?;
        scanner.end().map_err(|e| e.to_string())?;
        Ok(values)
    }

    #[test]
    fn numbers_read_flat_and_nested() {
        for text in ["[1,2,3,4]", "[[1,2],[3,4]]", " [ [ [1 , 2.0 ] ] ,\n[[3e0, 40e-1]]] "] {
            assert_eq!(floats(text).unwrap(), [1.0, 2.0, 3.0, 4.0], "{text}");
        }
        assert_eq!(floats("[]").unwrap(), [0.0; 0]);
        assert_eq!(floats("[-0.5,1E+2]").unwrap(), [-0.5, 100.0]);
    }

    #[test]
    fn the_tokens_of_triton_are_read() {
        let values = floats("[NaN, Infinity, -Infinity, Inf, -Inf]").unwrap();
        assert!(values[0].is_nan());
        assert_eq!(values[1..], [f32::INFINITY, f32::NEG_INFINITY, f32::INFINITY, f32::NEG_INFINITY]);
    }

    #[test]
    fn what_is_not_json_is_refused_with_its_place() {
        for (text, place) in [
            ("[1,,2]", "line 1 column 4"),
            ("[1\n,x]", "line 2 column 2"),
            ("[1.]", "line 1 column 2"),
            ("[01]", "line 1 column 3"),
            ("[.5]", "line 1 column 2"),
            ("[+1]", "line 1 column 2"),
            ("[1e]", "line 1 column 2"),
            ("[null]", "line 1 column 2"),
            ("[nan]", "line 1 column 2"),
            ("[1", "line 1 column 3"),
            ("[1] 2", "line 1 column 5"),
            ("[1e39]", "line 1 column 6"),
            ("[-]", "line 1 column 2"),
            ("", "line 1 column 1"),
        ] {
            let error = floats(text).expect_err(text);
            assert!(error.contains(place), "{text}: {error}");
        }
    }

    #[test]
    fn a_fault_says_what_is_wanted() {
        for (text, want) in [
            ("[5.]", "`5.` is no number: a digit must follow"),
            ("[1e+]", "`1e+` is no number: a digit must follow"),
            ("[-x]", "expected a number, found `-`"),
        ] {
            assert!(floats(text).unwrap_err().contains(want), "{text}");
        }
        let whole = |text: &str| Scanner::new(text.as_bytes()).numbers::<i64>(9).unwrap_err().to_string();
        assert!(
            whole("[1.0]").contains("`1.0`: numbers of type int64 are written without point and exponent")
        );
        assert!(whole("[1e2]").contains("without point"));
        assert!(whole("[9223372036854775808]").contains("is not a whole number that fits int64"));
        let truth = bool_tensor(b"[true, \"yes\"]", &[2], 2).unwrap_err().to_string();
        assert!(truth.contains("expected `true` or `false`, found `\"`"), "{truth}");
    }

    #[test]
    fn nesting_is_bounded() {
        let deep = "[".repeat(100_000);
        assert!(floats(&deep).unwrap_err().contains("nested deeper"));
        assert!(Scanner::new(deep.as_bytes()).skip().is_err());
    }

    #[test]
    fn integers_must_fit() {
        let read = |text: &str| Scanner::new(text.as_bytes()).numbers::<i8>(9);
        assert_eq!(read("[-128,127]").unwrap(), [-128, 127]);
        for text in ["[128]", "[1.0]", "[1e2]", "[NaN]"] {
            assert!(read(text).is_err(), "{text}");
        }
    }

    #[test]
    fn strings_read_with_and_without_escapes() {
        assert_eq!(Scanner::new(br#""a\u00e9\n""#).string().unwrap(), "aé\n");
        assert_eq!(Scanner::new(r#""é""#.as_bytes()).string().unwrap(), "é");
        assert!(Scanner::new(b"\"\xff\"").string().is_err());
        assert!(Scanner::new(b"\"abc").string().is_err());
        assert!(Scanner::new(b"\"abc\\").string().is_err());
    }
}
