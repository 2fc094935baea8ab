//! Compressed answers, for clients that ask for them. Only inference uses this: Triton's asynchronous client asks for
//! compression with every request and then cannot read anything else that is compressed, nor any coding but these two.

use std::io::Write as _;

use axum::http::{HeaderMap, header};
use flate2::Compression;
use flate2::write::{GzEncoder, ZlibEncoder};

/// How a body is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Coding {
    /// `gzip`.
    Gzip,
    /// `deflate`, which means zlib.
    Deflate,
}

impl Coding {
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
        let coding = match parts.next().unwrap_or_default().to_ascii_lowercase().as_str() {
            "gzip" | "x-gzip" => Coding::Gzip,
            "deflate" => Coding::Deflate,
            _ => continue,
        };
        let weight = parts.find_map(|part| part.strip_prefix("q=")).map_or(Some(1.0), |q| q.parse().ok());
        match weight {
            Some(weight) if weight > best.map_or(0.0, |(weight, _)| weight) => best = Some((weight, coding)),
            _ => {}
        }
    }
    best.map(|(_, coding)| coding)
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
    use std::io::Read as _;

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
    fn what_is_compressed_reads_back() {
        let body = b"tensor ".repeat(1000);
        let mut back = Vec::new();
        let gzip = compress(Coding::Gzip, &body).unwrap();
        flate2::read::GzDecoder::new(&gzip[..]).read_to_end(&mut back).unwrap();
        assert_eq!(back, body);
        back.clear();
        let zlib = compress(Coding::Deflate, &body).unwrap();
        flate2::read::ZlibDecoder::new(&zlib[..]).read_to_end(&mut back).unwrap();
        assert_eq!(back, body);
        assert!(gzip.len() < body.len());
    }
}
