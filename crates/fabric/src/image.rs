//! What a disk image's file tells from outside: its size for the guest, and which file it is.
//!
//! Reads headers only; never writes, and never locks: QEMU may have the image open.

use leeward_model::DiskFormat;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// The first bytes of a qcow2 image: `QFI\xfb`.
const QCOW2_MAGIC: u32 = 0x5146_49fb;
/// Bytes of a qcow2 header of version 2, which version 3 starts with too.
const QCOW2_HEADER_BYTES: usize = 72;
/// Longest backing string of a qcow2 image, in bytes.
pub const BACKING_BYTES_MAX: usize = 1023;

/// Why an image could not be looked at.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// There is no such file.
    #[error("the disk image {} is missing", .0.display())]
    Missing(PathBuf),
    /// It cannot be read.
    #[error("could not read the disk image {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is not of the format that it is said to be.
    #[error("the disk image {} is not {expected}: {found}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// The format it should have.
        expected: &'static str,
        /// What is wrong.
        found: String,
    },
}

/// Which file it is, whatever it is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileIdentity {
    device: u64,
    inode: u64,
}

/// What an image's file tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Which file it is; for a block device, which device.
    pub identity: FileIdentity,
    /// Size that the guest sees, in bytes.
    pub size: u64,
    /// Backing string of a qcow2 image; none when it has none.
    pub backing: Option<String>,
}

/// Looks at the image at `path`.
///
/// # Errors
/// [`ImageError`]; a folder and a raw image of no bytes are of no format.
pub fn inspect(path: &Path, format: DiskFormat) -> Result<Image, ImageError> {
    let read = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => ImageError::Missing(path.into()),
        _ => ImageError::Read { path: path.into(), source },
    };
    let wrong = |expected, found: &str| ImageError::Format {
        path: path.into(),
        expected,
        found: found.into(),
    };
    let mut file = File::open(path).map_err(read)?;
    let metadata = file.metadata().map_err(read)?;
    let kind = metadata.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return Err(wrong("a disk image", "it is neither a file nor a block device"));
    }
    let identity = match kind.is_block_device() {
        true => FileIdentity { device: metadata.rdev(), inode: 0 },
        false => FileIdentity { device: metadata.dev(), inode: metadata.ino() },
    };
    match format {
        DiskFormat::Raw => match file.seek(SeekFrom::End(0)).map_err(read)? {
            0 => Err(wrong("a raw disk", "it is empty")),
            size => Ok(Image { identity, size, backing: None }),
        },
        DiskFormat::Qcow2 => {
            let mut header = [0; QCOW2_HEADER_BYTES];
            file.read_exact(&mut header).map_err(|_| wrong("qcow2", "it is too short"))?;
            let parsed = Qcow2Header::parse(&header).map_err(|found| wrong("qcow2", found))?;
            let backing = match parsed.backing {
                None => None,
                Some((offset, len)) => {
                    let mut bytes = vec![0; len];
                    file.read_exact_at(&mut bytes, offset).map_err(read)?;
                    let text = String::from_utf8(bytes);
                    Some(text.map_err(|_| wrong("qcow2", "its backing string is not UTF-8"))?)
                }
            };
            Ok(Image { identity, size: parsed.size, backing })
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Qcow2Header {
    size: u64,
    /// Offset and length of the backing string.
    backing: Option<(u64, usize)>,
}

impl Qcow2Header {
    fn parse(bytes: &[u8; QCOW2_HEADER_BYTES]) -> Result<Qcow2Header, &'static str> {
        let u32_at = |at: usize| {
            let four: [u8; 4] = bytes[at..at + 4].try_into().expect("four bytes of the header");
            u32::from_be_bytes(four)
        };
        let u64_at = |at: usize| u64::from(u32_at(at)) << 32 | u64::from(u32_at(at + 4));
        if u32_at(0) != QCOW2_MAGIC {
            return Err("its first bytes are not those of qcow2");
        }
        if !matches!(u32_at(4), 2 | 3) {
            return Err("its version is neither 2 nor 3");
        }
        let (offset, len) = (u64_at(8), u32_at(16) as usize);
        if len > BACKING_BYTES_MAX {
            return Err("its backing string is longer than 1023 bytes");
        }
        let backing = (offset != 0 && len != 0).then_some((offset, len));
        match u64_at(24) {
            0 => Err("its size is 0"),
            size => Ok(Qcow2Header { size, backing }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header(version: u32, backing: (u64, u32), size: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(QCOW2_MAGIC.to_be_bytes());
        bytes.extend(version.to_be_bytes());
        bytes.extend(backing.0.to_be_bytes());
        bytes.extend(backing.1.to_be_bytes());
        bytes.extend(16_u32.to_be_bytes());
        bytes.extend(size.to_be_bytes());
        bytes.resize(QCOW2_HEADER_BYTES, 0);
        bytes
    }

    fn written(bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image");
        std::fs::write(&path, bytes).unwrap();
        (folder, path)
    }

    #[test]
    fn the_size_of_a_raw_image_is_that_of_its_file_and_of_a_qcow2_image_that_in_its_header() {
        let (_raw, raw) = written(&[7; 1536]);
        let mut bytes = header(3, (72, 4), 1 << 30);
        bytes.extend(b"base");
        let (_qcow2, qcow2) = written(&bytes);

        let raw = inspect(&raw, DiskFormat::Raw).unwrap();
        let qcow2 = inspect(&qcow2, DiskFormat::Qcow2).unwrap();

        assert_eq!((raw.size, raw.backing), (1536, None));
        assert_eq!((qcow2.size, qcow2.backing.as_deref()), (1 << 30, Some("base")));
    }

    #[test]
    fn one_file_under_two_names_has_one_identity() {
        let (folder, path) = written(&[1; 512]);
        let other = folder.path().join("link");
        std::fs::hard_link(&path, &other).unwrap();

        let a = inspect(&path, DiskFormat::Raw).unwrap();
        let b = inspect(&other, DiskFormat::Raw).unwrap();

        assert_eq!(a.identity, b.identity);
    }

    #[test]
    fn what_is_not_an_image_is_refused_in_words() {
        let (folder, empty) = written(&[]);
        let says = |path: &Path, format| inspect(path, format).unwrap_err().to_string();

        assert!(says(&empty, DiskFormat::Raw).contains("it is empty"));
        assert!(says(&empty, DiskFormat::Qcow2).contains("too short"));
        assert!(says(folder.path(), DiskFormat::Raw).contains("neither a file nor"));
        assert!(says(&folder.path().join("none"), DiskFormat::Raw).contains("is missing"));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 72)) {
            let _ = Qcow2Header::parse(&bytes.try_into().unwrap());
        }

        #[test]
        fn a_header_is_read_back(version in 2_u32..4, offset: u64, len in 0_u32..1024, size: u64) {
            let bytes: [u8; QCOW2_HEADER_BYTES] =
                header(version, (offset, len), size).try_into().unwrap();
            let backing = (offset != 0 && len != 0).then_some((offset, len as usize));
            let parsed = Qcow2Header::parse(&bytes);
            prop_assert_eq!(parsed.ok(), (size != 0).then_some(Qcow2Header { size, backing }));
        }
    }
}
