//! From a kernel file to an uncompressed ELF: as it is, or unpacked from a bzImage.
//!
//! A bzImage (`Documentation/x86/boot.rst`) holds a compressed vmlinux at `payload_offset` from the
//! start of its protected-mode part. Unpacking it here costs milliseconds; in a guest on a software
//! KVM it would cost minutes.

use std::fs::File;
use std::io::{Cursor, Read};
use std::path::Path;

use super::BootError;

/// Largest kernel we unpack, in bytes.
const MAX_UNPACKED: u64 = 512 << 20;
/// Largest kernel file we read, in bytes.
const MAX_FILE: u64 = 1 << 30;
/// Offset of the setup header in a bzImage.
const SETUP_HEADER: usize = 0x1F1;

/// Reads a kernel's file, called `path`, and returns the bytes of an ELF kernel.
///
/// # Errors
/// [`BootError::Read`] or [`BootError::NotAKernel`].
pub fn read(file: &mut File, path: &Path) -> Result<Cursor<Vec<u8>>, BootError> {
    let read_error = |source| BootError::Read {
        path: path.to_owned(),
        source,
    };
    if file.metadata().map_err(read_error)?.len() > MAX_FILE {
        return Err(BootError::NotAKernel {
            path: path.to_owned(),
            why: "it is larger than 1 GiB".into(),
        });
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).map_err(read_error)?;
    elf_of(bytes)
        .map(Cursor::new)
        .map_err(|why| BootError::NotAKernel {
            path: path.to_owned(),
            why,
        })
}

/// Whether `bytes` are a kernel that [`read`] would take; why not, if they are none.
///
/// # Errors
/// One line.
pub fn check(bytes: Vec<u8>) -> Result<(), String> {
    elf_of(bytes).map(drop)
}

fn elf_of(bytes: Vec<u8>) -> Result<Vec<u8>, String> {
    if bytes.starts_with(b"\x7FELF") {
        return check_elf(bytes);
    }
    if bytes.get(SETUP_HEADER + 0x11..SETUP_HEADER + 0x15) == Some(b"HdrS") {
        return check_elf(unpack(payload(&bytes)?)?);
    }
    Err("it is neither an ELF nor a bzImage".into())
}

fn check_elf(bytes: Vec<u8>) -> Result<Vec<u8>, String> {
    // EI_CLASS 2: 64-bit; e_machine 62: x86_64.
    if bytes.len() < 64 || !bytes.starts_with(b"\x7FELF\x02\x01") || bytes.get(18..20) != Some(&[62, 0]) {
        return Err("it is no 64-bit x86 ELF".into());
    }
    Ok(bytes)
}

fn payload(image: &[u8]) -> Result<&[u8], String> {
    let u32_at = |offset: usize| {
        image
            .get(offset..offset + 4)
            .and_then(|b| b.try_into().ok())
            .map(u32::from_le_bytes)
            .ok_or_else(|| "its setup header is cut off".to_owned())
    };
    let version = u32_at(0x206)? & 0xFFFF;
    if version < 0x208 {
        return Err(format!(
            "its boot protocol {version:#x} is older than 2.08 (2008)"
        ));
    }
    let sectors = match image.get(SETUP_HEADER) {
        Some(0) | None => 4,
        Some(&n) => usize::from(n),
    };
    let start = (sectors + 1) * 512 + u32_at(0x248)? as usize;
    let length = u32_at(0x24C)? as usize;
    start
        .checked_add(length)
        .and_then(|end| image.get(start..end))
        .filter(|payload| payload.len() > 4)
        .ok_or_else(|| "its payload lies outside the file".into())
}

/// Unpacks by the magic number at the start. The last four bytes of the payload are the unpacked
/// size, appended by the kernel's build; decoders of one stream do not mind.
fn unpack(payload: &[u8]) -> Result<Vec<u8>, String> {
    let failed = |what: &str, error: std::io::Error| format!("its {what} payload does not unpack: {error}");
    match payload {
        [0x1F, 0x8B, ..] => bounded(flate2::read::GzDecoder::new(payload)).map_err(|e| failed("gzip", e)),
        [0x28, 0xB5, 0x2F, 0xFD, ..] => {
            let decoder = zstd::stream::read::Decoder::new(payload)
                .map_err(|e| failed("zstd", e))?
                .single_frame();
            bounded(decoder).map_err(|e| failed("zstd", e))
        }
        [0xFD, b'7', b'z', b'X', b'Z', ..] => {
            bounded(liblzma::read::XzDecoder::new(payload)).map_err(|e| failed("xz", e))
        }
        [0x5D, 0, 0, ..] => {
            let stream = liblzma::stream::Stream::new_lzma_decoder(1 << 30)
                .map_err(|e| failed("lzma", std::io::Error::other(e)))?;
            bounded(liblzma::read::XzDecoder::new_stream(payload, stream)).map_err(|e| failed("lzma", e))
        }
        [0x7F, b'E', b'L', b'F', ..] => Ok(payload.to_vec()),
        [0x02, 0x21, 0x4C, 0x18, ..] => Err("its payload is lz4 (legacy), which is not supported".into()),
        [b'B', b'Z', b'h', ..] => Err("its payload is bzip2, which is not supported".into()),
        [0x89, b'L', b'Z', b'O', ..] => Err("its payload is lzo, which is not supported".into()),
        _ => Err("its payload has an unknown compression".into()),
    }
}

fn bounded(decoder: impl Read) -> std::io::Result<Vec<u8>> {
    let mut unpacked = Vec::new();
    decoder.take(MAX_UNPACKED + 1).read_to_end(&mut unpacked)?;
    if unpacked.len() as u64 > MAX_UNPACKED {
        return Err(std::io::Error::other("more than 512 MiB"));
    }
    Ok(unpacked)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn elf() -> Vec<u8> {
        let mut elf = vec![0; 64];
        elf[..6].copy_from_slice(b"\x7FELF\x02\x01");
        elf[18] = 62;
        elf
    }

    fn bz_image(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 1024];
        image[SETUP_HEADER] = 1;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x206..0x208].copy_from_slice(&0x20Fu16.to_le_bytes());
        image[0x24C..0x250].copy_from_slice(&u32::try_from(payload.len() + 4).unwrap().to_le_bytes());
        image.extend_from_slice(payload);
        image.extend_from_slice(&64u32.to_le_bytes());
        image
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn an_elf_is_taken_as_it_is() {
        assert_eq!(elf_of(elf()).unwrap(), elf());
    }

    #[test]
    fn a_bz_image_is_unpacked_whatever_compresses_it() {
        let xz = {
            let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 1);
            encoder.write_all(&elf()).unwrap();
            encoder.finish().unwrap()
        };
        for payload in [gzip(&elf()), zstd::encode_all(&elf()[..], 1).unwrap(), xz] {
            assert_eq!(elf_of(bz_image(&payload)).unwrap(), elf());
        }
    }

    #[test]
    fn what_is_no_kernel_is_refused_with_a_reason() {
        let mut wrong_machine = elf();
        wrong_machine[18] = 40;
        let mut cut = bz_image(&gzip(&elf()));
        cut.truncate(1030);
        let mut old = bz_image(&gzip(&elf()));
        old[0x206] = 7;
        old[0x207] = 2;
        for bytes in [
            vec![],
            b"#!/bin/sh".to_vec(),
            wrong_machine,
            cut,
            old,
            bz_image(b"junk!"),
            bz_image(&gzip(b"x")),
        ] {
            assert!(elf_of(bytes).is_err());
        }
    }
}
