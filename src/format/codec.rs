//! Records whose length varies: serde through bincode, behind a type, a version and a length.
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 2 | type |
//! | 2 | 2 | version |
//! | 4 | 4 | length of the payload in bytes |
//! | 8 | length | payload: fixed-width little-endian integers, u64 counts before sequences |
//!
//! The only place that knows bincode. The crate is finished and unmaintained: golden bytes hold the
//! encoding, so that another encoder can take over without a change of the format.

use crate::base::{Error, Result};
use bincode::Options;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Bytes before the payload.
pub const RECORD_HEAD: usize = 8;
/// Most bytes of a payload: what is longer is damage, and must not make us allocate.
pub const PAYLOAD_MAX: u64 = 1 << 20;

fn encoding() -> impl Options {
    bincode::DefaultOptions::new().with_fixint_encoding().with_little_endian().with_limit(PAYLOAD_MAX)
}

/// Encode a record.
///
/// # Errors
/// `Invalid` if it is longer than [`PAYLOAD_MAX`].
pub fn encode_record<T: Serialize>(kind: u16, version: u16, value: &T) -> Result<Vec<u8>> {
    let payload = encoding().serialize(value).map_err(|_| Error::Invalid("a record too long to encode"))?;
    let mut out = Vec::with_capacity(RECORD_HEAD + payload.len());
    out.extend(kind.to_le_bytes());
    out.extend(version.to_le_bytes());
    out.extend((payload.len() as u32).to_le_bytes());
    out.extend(payload);
    Ok(out)
}

/// Decode the record at the start of `bytes`: the value, and how many bytes the record took.
///
/// # Errors
/// `Device` saying what is wrong: another type or version, a length that cannot be, a payload that
/// is not exactly one value.
pub fn decode_record<T: DeserializeOwned>(kind: u16, version: u16, bytes: &[u8]) -> Result<(T, usize)> {
    let bad = |what: String| Error::Device(format!("record of type {kind}: {what}"));
    let Some((head, rest)) = bytes.split_first_chunk::<RECORD_HEAD>() else {
        return Err(bad("cut off".into()));
    };
    let number = |at: usize| u16::from_le_bytes([head[at], head[at + 1]]);
    if (number(0), number(2)) != (kind, version) {
        return Err(bad(format!("found type {}, version {}", number(0), number(2))));
    }
    let length = u32::from_le_bytes([head[4], head[5], head[6], head[7]]) as usize;
    let payload =
        rest.get(..length).ok_or_else(|| bad(format!("{length} bytes, {} are there", rest.len())))?;
    let value = encoding().reject_trailing_bytes().deserialize(payload).map_err(|e| bad(e.to_string()))?;
    Ok((value, RECORD_HEAD + length))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde::Deserialize;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    enum Shape {
        Point,
        Named { name: String, sizes: Vec<u32>, next: Option<u64> },
    }

    fn named() -> Shape {
        Shape::Named { name: "ab".into(), sizes: vec![1, 0x0203], next: Some(7) }
    }

    #[test]
    fn golden_bytes() {
        #[rustfmt::skip]
        let expected = [
            5, 0, 2, 0, 39, 0, 0, 0,            // type 5, version 2, 39 bytes
            1, 0, 0, 0,                         // variant
            2, 0, 0, 0, 0, 0, 0, 0, b'a', b'b', // string
            2, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 3, 2, 0, 0,
            1, 7, 0, 0, 0, 0, 0, 0, 0,          // option
        ];
        assert_eq!(encode_record(5, 2, &named()).unwrap(), expected);
        assert_eq!(encode_record(1, 1, &Shape::Point).unwrap(), [1, 0, 1, 0, 4, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn records_follow_each_other_and_are_told_apart() {
        let mut bytes = encode_record(5, 2, &named()).unwrap();
        bytes.extend(encode_record(5, 2, &Shape::Point).unwrap());
        let (first, used) = decode_record::<Shape>(5, 2, &bytes).unwrap();
        assert_eq!(first, named());
        assert_eq!(decode_record::<Shape>(5, 2, &bytes[used..]).unwrap(), (Shape::Point, 12));
        for (kind, version) in [(4, 2), (5, 1), (5, 3)] {
            assert!(decode_record::<Shape>(kind, version, &bytes).is_err());
        }
        for cut in 0..used {
            assert!(decode_record::<Shape>(5, 2, &bytes[..cut]).is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn too_long_is_refused_on_both_sides() {
        assert!(encode_record(1, 1, &vec![0u8; 2 << 20]).is_err());
        // A count of 2^60 in a short payload must not allocate.
        let mut bytes = encode_record(1, 1, &(1u64 << 60)).unwrap();
        assert!(decode_record::<Vec<u64>>(1, 1, &bytes).is_err());
        bytes[4..8].fill(0xff);
        assert!(decode_record::<Vec<u64>>(1, 1, &bytes).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_can_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let mut record = encode_record(5, 2, &Shape::Point).unwrap();
            record[4] = bytes.len() as u8;
            record.truncate(RECORD_HEAD);
            record.extend(&bytes);
            if let Ok((value, used)) = decode_record::<Shape>(5, 2, &record) {
                prop_assert_eq!(encode_record(5, 2, &value).unwrap(), &record[..used]);
            }
        }
    }
}
