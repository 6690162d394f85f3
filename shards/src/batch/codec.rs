//! Unpacks and packs the records of a batch.
//!
//! Floor 0. What is unpacked came from a client, perhaps hostile: the result is bounded by the caller, and beside it
//! a codec takes its window, at most [`ZSTD_WINDOW_LOG_MAX`] for zstd and 8 MiB for the others. What is packed is of
//! the shape that every client reads:
//!
//! | codec | read | written |
//! |---|---|---|
//! | gzip | one or more members | one member, level 6 |
//! | snappy | a bare block, or blocks in xerial's frame | xerial's frame, blocks of 32 KiB |
//! | lz4 | one frame, blocks of any size, linked or not | one frame, independent blocks of 64 KiB, no checksum of the content |
//! | zstd | one or more frames | one frame that states its content's size, level 3 |
//!
//! Java's lz4 reader refuses linked blocks, hence the independent ones. Xerial's frame is 16 bytes (`\x82SNAPPY\0`,
//! version 1, oldest version that reads it 1; both numbers big-endian), then blocks, each behind its length as a
//! big-endian 32-bit number.

use std::io::{self, Read, Write};

use flate2::bufread::MultiGzDecoder;
use flate2::write::GzEncoder;
use lz4_flex::frame::{BlockMode, BlockSize, FrameDecoder, FrameEncoder, FrameInfo};

use super::Compression;

/// The largest window of a zstd frame that is accepted, as a power of two: what zstd itself accepts by default and
/// what its highest ordinary level uses. Memory is touched only as far as the content fills it.
pub const ZSTD_WINDOW_LOG_MAX: u32 = 27;

const ZSTD_LEVEL: i32 = 3;
const XERIAL_HEADER: [u8; 16] = *b"\x82SNAPPY\0\0\0\0\x01\0\0\0\x01";
/// What tells xerial's frame from a bare block.
const XERIAL_MAGIC_BYTES: usize = 8;
const XERIAL_BLOCK_BYTES: usize = 32 * 1024;

/// Why records could not be unpacked, or packed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CodecError {
    #[error("the records are not what their codec writes")]
    Malformed,
    #[error("the records are larger than {bytes_max} bytes when unpacked")]
    TooLarge { bytes_max: usize },
    #[error("the codec could not pack the records")]
    Pack,
}

/// Appends to `out` what `packed` holds: at most `bytes_max` bytes, or it is an error. After one, `out` holds some of
/// them.
pub fn decompress(
    codec: Compression,
    packed: &[u8],
    bytes_max: usize,
    out: &mut Vec<u8>,
) -> Result<(), CodecError> {
    match codec {
        Compression::None => {
            if packed.len() > bytes_max {
                return Err(CodecError::TooLarge { bytes_max });
            }
            out.extend_from_slice(packed);
            Ok(())
        }
        Compression::Gzip => read_all(MultiGzDecoder::new(packed), bytes_max, out),
        Compression::Snappy => unpack_snappy(packed, bytes_max, out),
        Compression::Lz4 => read_all(FrameDecoder::new(packed), bytes_max, out),
        Compression::Zstd => {
            let mut reader =
                zstd::stream::read::Decoder::with_buffer(packed).map_err(|_| CodecError::Malformed)?;
            reader.window_log_max(ZSTD_WINDOW_LOG_MAX).map_err(|_| CodecError::Malformed)?;
            read_all(reader, bytes_max, out)
        }
    }
}

fn read_all(reader: impl Read, bytes_max: usize, out: &mut Vec<u8>) -> Result<(), CodecError> {
    let before = out.len();
    // One byte more than allowed tells that there are too many.
    reader.take(bytes_max as u64 + 1).read_to_end(out).map_err(|_| CodecError::Malformed)?;
    if out.len() - before > bytes_max { Err(CodecError::TooLarge { bytes_max }) } else { Ok(()) }
}

fn unpack_snappy(packed: &[u8], bytes_max: usize, out: &mut Vec<u8>) -> Result<(), CodecError> {
    let limit = out.len().saturating_add(bytes_max);
    let block = |block: &[u8], out: &mut Vec<u8>| {
        // What a block says of its length is checked before memory is taken for it.
        let len = snap::raw::decompress_len(block).map_err(|_| CodecError::Malformed)?;
        let start = out.len();
        if len > limit - start {
            return Err(CodecError::TooLarge { bytes_max });
        }
        out.resize(start + len, 0);
        let written = snap::raw::Decoder::new().decompress(block, &mut out[start..]);
        if written == Ok(len) { Ok(()) } else { Err(CodecError::Malformed) }
    };
    if !packed.starts_with(&XERIAL_HEADER[..XERIAL_MAGIC_BYTES]) {
        return block(packed, out);
    }
    let mut left = packed.get(XERIAL_HEADER.len()..).ok_or(CodecError::Malformed)?;
    while !left.is_empty() {
        let (len, after) = left.split_first_chunk().ok_or(CodecError::Malformed)?;
        let len = u32::from_be_bytes(*len) as usize;
        let (packed, after) = after.split_at_checked(len).ok_or(CodecError::Malformed)?;
        block(packed, out)?;
        left = after;
    }
    Ok(())
}

/// Appends `plain` to `out`, packed.
pub fn compress(codec: Compression, plain: &[u8], out: &mut Vec<u8>) -> Result<(), CodecError> {
    pack(codec, plain, out).map_err(|_| CodecError::Pack)
}

fn pack(codec: Compression, plain: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
    match codec {
        Compression::None => out.extend_from_slice(plain),
        Compression::Gzip => {
            let mut writer = GzEncoder::new(out, flate2::Compression::new(6));
            writer.write_all(plain)?;
            writer.finish()?;
        }
        Compression::Snappy => {
            out.extend_from_slice(&XERIAL_HEADER);
            let mut encoder = snap::raw::Encoder::new();
            for block in plain.chunks(XERIAL_BLOCK_BYTES) {
                let length_at = out.len();
                let start = length_at + 4;
                out.resize(start + snap::raw::max_compress_len(block.len()), 0);
                let len = encoder.compress(block, &mut out[start..])?;
                out.truncate(start + len);
                let len = u32::try_from(len).expect("a block of 32 KiB stays small");
                out[length_at..start].copy_from_slice(&len.to_be_bytes());
            }
        }
        Compression::Lz4 => {
            let info = FrameInfo::new().block_mode(BlockMode::Independent).block_size(BlockSize::Max64KB);
            let mut writer = FrameEncoder::with_frame_info(info, out);
            writer.write_all(plain)?;
            writer.finish()?;
        }
        Compression::Zstd => out.extend_from_slice(&zstd::bulk::compress(plain, ZSTD_LEVEL)?),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACKED: [Compression; 4] =
        [Compression::Gzip, Compression::Snappy, Compression::Lz4, Compression::Zstd];

    fn text(len: usize) -> Vec<u8> {
        let mut state = 1_u32;
        let mut out = Vec::with_capacity(len);
        while out.len() < len {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            out.extend_from_slice(&format!("record {} ", state >> 24).into_bytes());
        }
        out.truncate(len);
        out
    }

    fn unpacked(codec: Compression, packed: &[u8], bytes_max: usize) -> Result<Vec<u8>, CodecError> {
        let mut out = Vec::new();
        decompress(codec, packed, bytes_max, &mut out).map(|()| out)
    }

    #[test]
    fn every_codec_reads_what_it_wrote() {
        for codec in PACKED.into_iter().chain([Compression::None]) {
            for len in [0, 1, 100, 32 * 1024, 32 * 1024 + 1, 300_000] {
                let plain = text(len);
                let mut packed = Vec::new();
                compress(codec, &plain, &mut packed).unwrap();
                assert_eq!(unpacked(codec, &packed, len), Ok(plain), "{codec:?} {len}");
                if len > 1000 && codec != Compression::None {
                    assert!(packed.len() < len / 2, "{codec:?}");
                }
                if len > 0 {
                    let small = unpacked(codec, &packed, len - 1);
                    assert_eq!(small, Err(CodecError::TooLarge { bytes_max: len - 1 }), "{codec:?} {len}");
                }
            }
        }
    }

    #[test]
    fn bombs_end_at_the_bound() {
        let zeros = vec![0; 64 << 20];
        for codec in PACKED {
            let mut packed = Vec::new();
            compress(codec, &zeros, &mut packed).unwrap();
            let mut out = Vec::new();
            let result = decompress(codec, &packed, 10_000, &mut out);
            assert_eq!(result, Err(CodecError::TooLarge { bytes_max: 10_000 }), "{codec:?}");
            assert!(out.capacity() < 1 << 20, "{codec:?} took {}", out.capacity());
        }
        // Five bytes that promise 4 GiB.
        let promise = [0xff, 0xff, 0xff, 0xff, 0x0f];
        assert!(unpacked(Compression::Snappy, &promise, 1 << 20).is_err());
    }

    #[test]
    fn snappy_is_read_with_and_without_its_frame() {
        let plain = text(5000);
        let bare = snap::raw::Encoder::new().compress_vec(&plain).unwrap();
        assert_eq!(unpacked(Compression::Snappy, &bare, 5000), Ok(plain));
        let mut framed = Vec::new();
        compress(Compression::Snappy, b"0123", &mut framed).unwrap();
        assert_eq!(framed[..16], XERIAL_HEADER);
        assert_eq!(framed[16..20], (framed.len() as u32 - 20).to_be_bytes());
    }

    #[test]
    fn lz4_is_written_with_independent_blocks() {
        let mut packed = Vec::new();
        compress(Compression::Lz4, &text(200_000), &mut packed).unwrap();
        // Version 1, independent blocks, no checksums, no size; blocks of 64 KiB.
        assert_eq!(packed[..6], [0x04, 0x22, 0x4d, 0x18, 0x60, 0x40]);
    }

    /// What other implementations write: zlib's gzip, lz4's and zstd's command lines, of "highwater " five times.
    #[test]
    fn output_of_other_implementations_is_read() {
        let plain = b"highwater ".repeat(5);
        for (codec, packed) in foreign::GOLDEN {
            assert_eq!(unpacked(codec, packed, 1000), Ok(plain.clone()), "{codec:?}");
        }
    }

    mod foreign {
        use super::Compression;

        #[rustfmt::skip]
        pub const GOLDEN: [(Compression, &[u8]); 4] = [
            (Compression::Gzip, &[0x1f, 0x8b, 0x08, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x03, 0xcb, 0xc8, 0x4c, 0xcf, 0x28, 0x4f, 0x2c, 0x49, 0x2d, 0x52, 0xc8, 0x20, 0x92, 0x05, 0x00, 0x18, 0x67, 0xff, 0xd2, 0x32, 0x00, 0x00, 0x00]),
            (Compression::Lz4, &[0x04, 0x22, 0x4d, 0x18, 0x64, 0x40, 0xa7, 0x14, 0x00, 0x00, 0x00, 0xaf, 0x68, 0x69, 0x67, 0x68, 0x77, 0x61, 0x74, 0x65, 0x72, 0x20, 0x0a, 0x00, 0x10, 0x50, 0x61, 0x74, 0x65, 0x72, 0x20, 0x00, 0x00, 0x00, 0x00, 0xbc, 0x46, 0xcd, 0x2f]),
            (Compression::Lz4, &[0x04, 0x22, 0x4d, 0x18, 0x6c, 0x40, 0x32, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x18, 0x14, 0x00, 0x00, 0x00, 0xaf, 0x68, 0x69, 0x67, 0x68, 0x77, 0x61, 0x74, 0x65, 0x72, 0x20, 0x0a, 0x00, 0x10, 0x50, 0x61, 0x74, 0x65, 0x72, 0x20, 0x00, 0x00, 0x00, 0x00, 0xbc, 0x46, 0xcd, 0x2f]),
            (Compression::Zstd, &[0x28, 0xb5, 0x2f, 0xfd, 0x24, 0x32, 0x85, 0x00, 0x00, 0x50, 0x68, 0x69, 0x67, 0x68, 0x77, 0x61, 0x74, 0x65, 0x72, 0x20, 0x01, 0x00, 0x5b, 0x16, 0x24, 0xde, 0xc7, 0x3f, 0x59]),
        ];
    }

    #[test]
    fn damaged_input_is_an_error_or_other_bytes_but_never_a_panic() {
        let plain = text(3000);
        for codec in PACKED {
            let mut packed = Vec::new();
            compress(codec, &plain, &mut packed).unwrap();
            for at in 0..packed.len() {
                let _ = unpacked(codec, &packed[..at], 10_000);
                for bit in 0..8 {
                    let mut bad = packed.clone();
                    bad[at] ^= 1 << bit;
                    let _ = unpacked(codec, &bad, 10_000);
                }
            }
        }
    }
}
