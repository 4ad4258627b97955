//! What an answer's headers say about its body: how it was packed, and where it ends.

use crate::wire::{Failure, MAX_BODY};
use bytes::Bytes;
use flate2::bufread::{DeflateDecoder, MultiGzDecoder, ZlibDecoder};
use reqwest::header::{CONTENT_ENCODING, CONTENT_LENGTH, HeaderMap, TRANSFER_ENCODING};
use std::io::Read;

/// The body as it was before it was packed, although that was not requested. A body that cannot be
/// believed is replaced by a sentence that says why: status and headers still speak.
pub(super) fn plain(headers: &HeaderMap, body: Bytes) -> Result<Bytes, Failure> {
    if headers.contains_key(TRANSFER_ENCODING) && headers.contains_key(CONTENT_LENGTH) {
        // Two ends: what one reader takes for this answer's rest is another one's next answer.
        return Ok(Bytes::from_static(b"an answer with both Content-Length and Transfer-Encoding is not read"));
    }
    let codings = headers.get_all(CONTENT_ENCODING).iter().flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    let codings = codings.map(|coding| String::from_utf8_lossy(coding).trim().to_ascii_lowercase());
    let codings: Vec<String> = codings.filter(|coding| !coding.is_empty() && coding != "identity").collect();
    if body.is_empty() {
        return Ok(body);
    }
    match codings.as_slice() {
        [] => Ok(body),
        [coding] => unpacked(coding, &body),
        several => Ok(unreadable(&several.join(", "))),
    }
}

fn unpacked(coding: &str, body: &[u8]) -> Result<Bytes, Failure> {
    let unpacked = match coding {
        "gzip" | "x-gzip" => read(MultiGzDecoder::new(body))?,
        // Two forms go by that name.
        "deflate" => match read(ZlibDecoder::new(body))? {
            None => read(DeflateDecoder::new(body))?,
            found => found,
        },
        _ => None,
    };
    Ok(unpacked.unwrap_or_else(|| unreadable(coding)))
}

/// What the decoder makes of the body, if it can make anything of it.
fn read(decoder: impl Read) -> Result<Option<Bytes>, Failure> {
    let mut unpacked = Vec::new();
    let end = decoder.take(MAX_BODY as u64 + 1).read_to_end(&mut unpacked);
    // However it would have ended.
    if unpacked.len() > MAX_BODY {
        return Err(Failure::TooLong);
    }
    Ok(end.is_ok().then(|| unpacked.into()))
}

fn unreadable(coding: &str) -> Bytes {
    let coding: String = coding.chars().filter(char::is_ascii_graphic).take(40).collect();
    format!("a body with Content-Encoding {coding} that cannot be unpacked").into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::Compression;
    use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};
    use std::io::Write;

    const TEXT: &[u8] = br#"{"state":"Success"}"#;

    fn packed(coding: &str, text: &[u8]) -> Vec<u8> {
        let level = Compression::default();
        fn all(mut encoder: impl Write, text: &[u8]) {
            encoder.write_all(text).expect("memory");
        }
        let mut packed = Vec::new();
        match coding {
            "gzip" => all(GzEncoder::new(&mut packed, level), text),
            "zlib" => all(ZlibEncoder::new(&mut packed, level), text),
            "deflate" => all(DeflateEncoder::new(&mut packed, level), text),
            _ => packed.extend_from_slice(text),
        }
        packed
    }

    fn read_as(coding: &'static str, body: Vec<u8>) -> Result<Bytes, Failure> {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_ENCODING, coding.parse().expect("a header"));
        plain(&headers, body.into())
    }

    #[test]
    fn what_was_packed_unasked_is_unpacked() {
        for (coding, form) in [
            ("gzip", "gzip"),
            ("x-gzip", "gzip"),
            (" GZIP ", "gzip"),
            ("deflate", "zlib"),
            ("deflate", "deflate"),
            ("identity", "plain"),
            ("", "plain"),
        ] {
            assert_eq!(read_as(coding, packed(form, TEXT)).expect("readable"), TEXT, "{coding}");
        }
        assert_eq!(read_as("gzip", Vec::new()).expect("readable"), "", "nothing was packed");
        assert_eq!(plain(&HeaderMap::new(), TEXT.into()).expect("readable"), TEXT);
    }

    #[test]
    fn what_unpacks_to_more_than_is_read_is_cut_off() {
        for (coding, form) in [("gzip", "gzip"), ("deflate", "zlib"), ("deflate", "deflate")] {
            let fits = packed(form, &vec![b' '; MAX_BODY]);
            assert_eq!(read_as(coding, fits).expect("readable").len(), MAX_BODY);
            assert_eq!(read_as(coding, packed(form, &vec![b' '; MAX_BODY + 1])), Err(Failure::TooLong));
        }
    }

    #[test]
    fn a_body_that_is_not_what_its_headers_say_is_not_read() {
        let mut cut = packed("gzip", TEXT);
        cut.truncate(cut.len() - 3);
        for (coding, body) in [("gzip", cut), ("gzip", TEXT.to_vec()), ("deflate", TEXT.to_vec()), ("br", TEXT.to_vec())] {
            let read = read_as(coding, body).expect("a sentence");
            assert!(read.starts_with(b"a body with Content-Encoding"), "{coding}: {read:?}");
        }
        let twice = read_as("gzip, gzip", packed("gzip", &packed("gzip", TEXT))).expect("a sentence");
        assert_eq!(twice, "a body with Content-Encoding gzip,gzip that cannot be unpacked");
    }

    #[test]
    fn an_answer_with_two_ends_is_not_read() {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_LENGTH, TEXT.len().into());
        headers.insert(TRANSFER_ENCODING, "chunked".parse().expect("a header"));
        assert!(plain(&headers, TEXT.into()).expect("a sentence").starts_with(b"an answer with both"));
    }
}
