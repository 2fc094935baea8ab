//! Compressed requests, and compressed answers for clients that ask for them. Only inference uses this: Triton's asynchronous
//! client asks for compression with every request and then cannot read anything else that is compressed, nor any coding
//! but these two.

use std::io::{Read, Write as _};

use axum::http::{HeaderMap, header};
use flate2::Compression;
use flate2::bufread::{MultiGzDecoder, ZlibDecoder};
use flate2::write::{GzEncoder, ZlibEncoder};

use crate::api::error::{Code, Problem};
use crate::api::http::broken_body;
use crate::engine::tensor::Incoming;

/// How a body is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Coding {
    /// `gzip`.
    Gzip,
    /// `deflate`, which means zlib.
    Deflate,
}

impl Coding {
    /// As a header names it: RFC 9110 has both names of gzip, and letters of either case.
    fn named(text: &str) -> Option<Coding> {
        match text.to_ascii_lowercase().as_str() {
            "gzip" | "x-gzip" => Some(Coding::Gzip),
            "deflate" => Some(Coding::Deflate),
            _ => None,
        }
    }

    /// As `Content-Encoding` names it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Coding::Gzip => "gzip",
            Coding::Deflate => "deflate",
        }
    }
}

/// The coding that `Accept-Encoding` asks for, if it is one of ours; of two with the same weight, the first.
pub(crate) fn wanted(headers: &HeaderMap) -> Option<Coding> {
    let mut best: Option<(f32, Coding)> = None;
    let values = headers.get_all(header::ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
    for item in values.flat_map(|value| value.split(',')) {
        let mut parts = item.split(';').map(str::trim);
        let Some(coding) = Coding::named(parts.next().unwrap_or_default()) else { continue };
        let weight = parts.find_map(|part| part.strip_prefix("q=")).map_or(Some(1.0), |q| q.parse().ok());
        match weight {
            Some(weight) if weight > best.map_or(0.0, |(weight, _)| weight) => best = Some((weight, coding)),
            _ => {}
        }
    }
    best.map(|(_, coding)| coding)
}

/// The coding that `Content-Encoding` says a body has; `None` where it is plain.
///
/// # Errors
/// 415 for another coding, and for one within another.
pub(crate) fn of_body(headers: &HeaderMap) -> Result<Option<Coding>, Problem> {
    let values = headers.get_all(header::CONTENT_ENCODING).iter();
    let text: Vec<_> = values.map(|value| value.to_str().unwrap_or("bytes that are not text")).collect();
    let text = text.join(", ");
    let mut names = text
        .split(',')
        .map(str::trim)
        .filter(|name| !name.is_empty() && !name.eq_ignore_ascii_case("identity"));
    match (names.next().map(Coding::named), names.next()) {
        (None, _) => Ok(None),
        (Some(Some(coding)), None) => Ok(Some(coding)),
        _ => {
            let takes = "the body of an inference request is plain, `gzip` or `deflate`";
            Err(Problem::new(Code::UnsupportedMedia, format!("Content-Encoding `{text}`: {takes}")))
        }
    }
}

/// A body as it was before it was compressed, which is a tensor from byte `head` on.
///
/// # Errors
/// 400 where it is not that, also where something follows what is; 413 where it has more than `limit_bytes`.
pub(crate) fn decompress(
    coding: Coding,
    body: &[u8],
    head: usize,
    limit_bytes: u64,
) -> Result<Incoming, Problem> {
    let mut plain = Incoming::with_room(body.len(), head);
    let mut rest = body;
    match coding {
        // RFC 1952: a file is a series of members. What follows them and is none is a fault there.
        Coding::Gzip => fill(&mut plain, MultiGzDecoder::new(&mut rest), limit_bytes)?,
        Coding::Deflate => fill(&mut plain, ZlibDecoder::new(&mut rest), limit_bytes)?,
    }
    if rest.is_empty() {
        return Ok(plain);
    }
    Err(Problem::bad_request(format!("{} bytes follow the end of the compressed body", rest.len())))
}

fn fill(plain: &mut Incoming, decoder: impl Read, limit_bytes: u64) -> Result<(), Problem> {
    let mut some = decoder.take(limit_bytes.saturating_add(1));
    plain.extend_by(|bytes| some.read_to_end(bytes).map(drop)).map_err(|error| broken_body(&error))?;
    if plain.bytes().len() as u64 > limit_bytes { Err(Problem::too_large(limit_bytes)) } else { Ok(()) }
}

/// Compresses a body, quickly rather than well: tensors hardly shrink anyway.
///
/// # Errors
/// Those of the encoder, which a buffer in memory does not give.
pub(crate) fn compress(coding: Coding, body: &[u8]) -> std::io::Result<Vec<u8>> {
    let out = Vec::with_capacity(body.len() / 2);
    match coding {
        Coding::Gzip => {
            let mut encoder = GzEncoder::new(out, Compression::fast());
            encoder.write_all(body)?;
            encoder.finish()
        }
        Coding::Deflate => {
            let mut encoder = ZlibEncoder::new(out, Compression::fast());
            encoder.write_all(body)?;
            encoder.finish()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    #[test]
    fn only_what_is_asked_for_is_given() {
        for (text, want) in [
            ("", None),
            ("identity", None),
            ("br, zstd", None),
            ("gzip, deflate, br", Some(Coding::Gzip)),
            ("deflate", Some(Coding::Deflate)),
            ("gzip;q=0.5, deflate;q=0.8", Some(Coding::Deflate)),
            ("gzip;q=0", None),
            ("gzip;q=x", None),
            ("*", None),
        ] {
            let headers = HeaderMap::from_iter([(header::ACCEPT_ENCODING, HeaderValue::from_static(text))]);
            assert_eq!(wanted(&headers), want, "{text}");
        }
        assert_eq!(wanted(&HeaderMap::new()), None);
    }

    #[test]
    fn a_coding_has_its_names_and_no_other_within_it() {
        let of = |values: &[&'static str]| {
            let pairs = values
                .iter()
                .map(|v| (header::CONTENT_ENCODING, HeaderValue::from_bytes(v.as_bytes()).unwrap()));
            let mut headers = HeaderMap::new();
            pairs.for_each(|(name, value)| _ = headers.append(name, value));
            of_body(&headers)
        };
        for plain in [&[][..], &[""], &["identity"], &["Identity", "identity"]] {
            assert_eq!(of(plain).unwrap(), None, "{plain:?}");
        }
        for gzip in [&["gzip"][..], &["GZIP"], &["x-gzip"], &[" gzip "], &["identity, gzip"]] {
            assert_eq!(of(gzip).unwrap(), Some(Coding::Gzip), "{gzip:?}");
        }
        assert_eq!(of(&["Deflate"]).unwrap(), Some(Coding::Deflate));
        for other in [&["br"][..], &["gzip, deflate"], &["gzip", "gzip"], &["br", "gzip"], &["\u{e9}"]] {
            let problem = of(other).unwrap_err();
            assert_eq!(problem.code, Code::UnsupportedMedia, "{other:?}");
            assert!(problem.detail.contains("Content-Encoding"), "{}", problem.detail);
        }
    }

    #[test]
    fn what_is_compressed_reads_back_and_nothing_may_follow() {
        let body = b"tensor ".repeat(1000);
        let read = |coding, bytes: &[u8], limit| {
            decompress(coding, bytes, 3, limit)
                .map(|plain| plain.bytes().to_vec())
                .map_err(|p| (p.code, p.detail))
        };
        for coding in [Coding::Gzip, Coding::Deflate] {
            let packed = compress(coding, &body).unwrap();
            assert!(packed.len() < body.len());
            assert_eq!(read(coding, &packed, 7000).unwrap(), body);
            assert_eq!(read(coding, &packed, 6999).unwrap_err().0, Code::TooLarge);
            let (cut, longer) = (&packed[..packed.len() - 1], [&packed[..], &[0]].concat());
            for wrong in [cut, &longer, &[], b"no such thing"] {
                let (code, detail) = read(coding, wrong, 7000).unwrap_err();
                assert_eq!(code, Code::BadRequest, "{coding:?} {detail}");
                assert!(detail.contains("body"), "{detail}");
            }
            let twice = [&packed[..], &packed].concat();
            match coding {
                Coding::Gzip => assert_eq!(read(coding, &twice, 14_000).unwrap(), body.repeat(2)),
                Coding::Deflate => {
                    assert!(read(coding, &twice, 14_000).unwrap_err().1.contains("follow the end"))
                }
            }
        }
    }
}
