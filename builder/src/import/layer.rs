//! One layer: a tar archive, read into the tree.
//!
//! Headers of extensions are read here and not by the tar library, which would take a gigabyte of file name
//! into memory if a header says so.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use tar::{Archive, EntryType, Header};

use super::error::ImportError;
use super::tree::{EntryPath, Kind, Meta, Node, Tree, lossy};

/// The longest extension header: names and attributes of one file.
const MAX_EXTENSION: u64 = 1 << 20;
/// ext4 keeps seconds in 34 bits.
const MAX_MTIME: u64 = (1 << 34) - 1;
const XATTR: &str = "SCHILY.xattr.";

/// What of the layers is counted, and what was left out.
#[derive(Debug, Default)]
pub struct Counts {
    /// Entries of all layers so far.
    pub entries: u64,
    /// Devices and sockets that were left out.
    pub devices: u64,
    /// Extended attributes that were left out.
    pub xattrs: u64,
    /// Contents of files so far; the next one's number.
    pub contents: u64,
}

/// What the headers before an entry say of it.
#[derive(Default)]
struct Extension {
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    mtime: Option<u64>,
    uid: Option<u32>,
    gid: Option<u32>,
    xattrs: BTreeMap<String, Vec<u8>>,
}

/// Reads one layer's archive into `tree`. The contents of its files go to numbered files in `contents`.
///
/// # Errors
/// [`ImportError`].
pub fn read(
    archive: &mut dyn Read,
    number: usize,
    tree: &mut Tree,
    contents: &Path,
    counts: &mut Counts,
    max_entries: u64,
) -> Result<(), ImportError> {
    let unreadable = |cause| ImportError::Layer { layer: number, cause };
    let mut extension = Extension::default();
    let mut archive = Archive::new(archive);
    for entry in archive.entries().map_err(unreadable)?.raw(true) {
        let mut entry = entry.map_err(unreadable)?;
        counts.entries += 1;
        if counts.entries > max_entries {
            return Err(ImportError::TooMuch {
                limit: format!("{max_entries} entries"),
                option: "--max-entries",
            });
        }
        let header = entry.header().clone();
        let kind = header.entry_type();
        let refused = |name: &[u8], problem: String| ImportError::Entry {
            layer: number,
            entry: lossy(name),
            problem,
        };
        let short_name = header.path_bytes().into_owned();
        match kind {
            EntryType::GNULongName
            | EntryType::GNULongLink
            | EntryType::XHeader
            | EntryType::XGlobalHeader => {
                let size = header.entry_size().map_err(unreadable)?;
                if size > MAX_EXTENSION {
                    return Err(refused(&short_name, "its header is absurdly long".to_owned()));
                }
                let mut bytes = Vec::new();
                entry.read_to_end(&mut bytes).map_err(unreadable)?;
                extension
                    .take(kind, &bytes, counts)
                    .map_err(|problem| refused(&short_name, problem))?;
                continue;
            }
            _ => {}
        }
        let extension = std::mem::take(&mut extension);
        let name = extension.name.clone().unwrap_or(short_name);
        place(
            &mut entry, &name, &header, extension, number, tree, contents, counts,
        )
        .map_err(|problem| match problem {
            Problem::Entry(problem) => refused(&name, problem),
            Problem::Archive(cause) => unreadable(cause),
            Problem::Here(error) => error,
        })?;
    }
    Ok(())
}

enum Problem {
    Entry(String),
    Archive(io::Error),
    Here(ImportError),
}

impl From<String> for Problem {
    fn from(problem: String) -> Problem {
        Problem::Entry(problem)
    }
}

#[allow(clippy::too_many_arguments)] // everything an entry touches
fn place(
    entry: &mut dyn Read,
    name: &[u8],
    header: &Header,
    extension: Extension,
    layer: usize,
    tree: &mut Tree,
    contents: &Path,
    counts: &mut Counts,
) -> Result<(), Problem> {
    let path = EntryPath::parse(name)?;
    if let Some((parents, name)) = path.split()
        && let Some(hidden) = name.strip_prefix(b".wh.")
    {
        let hiding = match hidden {
            b".wh..opq" => tree.opaque(parents, layer),
            // The specification reserves these names; AUFS kept its own there.
            _ if hidden.starts_with(b".wh.") => Ok(()),
            b"" | b"." | b".." => Err("it hides nothing that could be".to_owned()),
            _ => tree.whiteout(parents, hidden, layer),
        };
        return Ok(hiding?);
    }
    let number = |value: io::Result<u64>, what: &str| {
        value
            .ok()
            .and_then(|value| u32::try_from(value).ok())
            .ok_or_else(|| format!("its {what} cannot be"))
    };
    let meta = Meta {
        mode: header.mode().map_err(|_| "its mode cannot be".to_owned())? & 0o7777,
        uid: extension.uid.map_or_else(|| number(header.uid(), "owner"), Ok)?,
        gid: extension.gid.map_or_else(|| number(header.gid(), "group"), Ok)?,
        mtime: extension
            .mtime
            .unwrap_or_else(|| header.mtime().unwrap_or(0))
            .min(MAX_MTIME),
        xattrs: extension.xattrs,
    };
    let target = || {
        let short = || header.link_name_bytes().map(|name| name.into_owned());
        extension.link.clone().or_else(short).unwrap_or_default()
    };
    let kind = match header.entry_type() {
        EntryType::Directory => Kind::Directory(BTreeMap::new()),
        EntryType::Regular | EntryType::Continuous => {
            let content = counts.contents;
            counts.contents += 1;
            let at = contents.join(content.to_string());
            let expected = header.entry_size().map_err(Problem::Archive)?;
            let bytes = copy(entry, &at)?;
            if bytes != expected {
                return Err(Problem::Archive(io::ErrorKind::UnexpectedEof.into()));
            }
            Kind::File { content, bytes }
        }
        EntryType::Symlink => match target() {
            to if to.is_empty() || to.len() > 4095 || to.contains(&0) => {
                return Err("its target cannot be a link's".to_owned().into());
            }
            to => Kind::Symlink(to),
        },
        EntryType::Link => {
            let to = EntryPath::parse(&target()).map_err(|problem| format!("its target: {problem}"))?;
            return Ok(tree.link(&path, &to, layer)?);
        }
        EntryType::Fifo => Kind::Fifo,
        // The guest's kernel makes the devices it has.
        EntryType::Char | EntryType::Block => {
            counts.devices += 1;
            return Ok(());
        }
        EntryType::GNUSparse => return Err("sparse files are not supported".to_owned().into()),
        other => {
            return Err(format!("an entry of type {:?} is not known", char::from(other.as_byte())).into());
        }
    };
    Ok(tree.put(&path, Node { kind, meta }, layer)?)
}

fn copy(from: &mut dyn Read, to: &Path) -> Result<u64, Problem> {
    let here = |cause| {
        Problem::Here(ImportError::File {
            path: to.to_owned(),
            cause,
        })
    };
    let mut file = File::create_new(to).map_err(here)?;
    let mut buffer = vec![0; 128 << 10];
    let mut total = 0;
    loop {
        let count = from.read(&mut buffer).map_err(Problem::Archive)?;
        if count == 0 {
            return Ok(total);
        }
        io::Write::write_all(&mut file, &buffer[..count]).map_err(here)?;
        total += count as u64;
    }
}

impl Extension {
    fn take(&mut self, kind: EntryType, bytes: &[u8], counts: &mut Counts) -> Result<(), String> {
        let until_nul = || bytes.split(|byte| *byte == 0).next().unwrap_or_default().to_vec();
        match kind {
            EntryType::GNULongName => self.name = Some(until_nul()),
            EntryType::GNULongLink => self.link = Some(until_nul()),
            // A comment, or the commit an archive was made of; what is for one entry is in its own header.
            EntryType::XGlobalHeader => {}
            _ => self.take_pax(bytes, counts)?,
        }
        Ok(())
    }

    fn take_pax(&mut self, bytes: &[u8], counts: &mut Counts) -> Result<(), String> {
        for (key, value) in pax_records(bytes)? {
            let text = || std::str::from_utf8(value).map_err(|_| format!("its {key} is no text"));
            let id = || {
                let parsed = text()?.parse::<u32>();
                parsed.map_err(|_| format!("its {key} cannot be"))
            };
            match key {
                "path" => self.name = Some(value.to_vec()),
                "linkpath" => self.link = Some(value.to_vec()),
                "uid" => self.uid = Some(id()?),
                "gid" => self.gid = Some(id()?),
                "mtime" => {
                    // With a fraction, and before 1970 with a sign.
                    let seconds = text()?.split('.').next().unwrap_or_default();
                    self.mtime = Some(
                        seconds
                            .parse::<i64>()
                            .map_or(0, |s| u64::try_from(s).unwrap_or(0)),
                    );
                }
                "size" => return Err("files of 8 GiB and more are not supported".to_owned()),
                _ if key.starts_with("GNU.sparse") => return Err("sparse files are not supported".to_owned()),
                _ => match key.strip_prefix(XATTR) {
                    Some(name) if is_kept(name) => drop(self.xattrs.insert(name.to_owned(), value.to_vec())),
                    Some(_) => counts.xattrs += 1,
                    None => {}
                },
            }
        }
        Ok(())
    }
}

/// The records of a pax header (POSIX.1-2017, pax, "pax Extended Header"): each is its length in decimal, a
/// space, the key, `=`, the value, a line break. A value may have line breaks in it, as a capability has.
fn pax_records(mut bytes: &[u8]) -> Result<Vec<(&str, &[u8])>, String> {
    let mut records = Vec::new();
    while !bytes.is_empty() {
        let (record, rest) = pax_record(bytes).ok_or("its extension header cannot be read")?;
        records.push(record);
        bytes = rest;
    }
    Ok(records)
}

type Record<'a> = ((&'a str, &'a [u8]), &'a [u8]);

fn pax_record(bytes: &[u8]) -> Option<Record<'_>> {
    let space = bytes.iter().position(|byte| *byte == b' ')?;
    let length: usize = std::str::from_utf8(&bytes[..space]).ok()?.parse().ok()?;
    let (record, rest) = bytes.split_at_checked(length)?;
    let record = record.get(space + 1..)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|byte| *byte == b'=')?;
    let key = std::str::from_utf8(&record[..equals]).ok()?;
    Some(((key, &record[equals + 1..]), rest))
}

/// What means the same in the guest. Labels of the host's security modules and notes of its file systems do
/// not.
fn is_kept(name: &str) -> bool {
    let simple = name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'"');
    name == "security.capability" || (name.starts_with("user.") && simple)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_may_have_line_breaks_and_a_header_that_lies_is_refused() {
        let good = b"9 a=b\nc=\n7 d=\0\n\n";
        let good = pax_records(good).unwrap();
        assert_eq!(good, [("a", b"b\nc=".as_slice()), ("d", b"\0\n".as_slice())]);
        for bad in [
            "9 a=b\n", "5 a=b\n", "6 a=b", "4 ab\n", "x a=b\n", "-6 a=b\n", "0 a=b\n", "1 ",
        ] {
            assert!(pax_records(bad.as_bytes()).is_err(), "{bad:?}");
        }
        assert!(pax_records(b"99999999999999999999 a=b\n").is_err());
    }
}
