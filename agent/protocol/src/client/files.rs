//! Files and directories of the guest.

use std::io::{Read, Write};

use super::{AgentClient, ClientError, read_some, unexpected};
use crate::CHUNK_BYTES;
use crate::message::{DirEntry, FileInfo, FileStat, HostFrame, Reply, Request};

impl<S: Read + Write> AgentClient<S> {
    /// Copies a file of the guest into `sink`.
    ///
    /// # Errors
    /// [`ClientError::Refused`] also when the guest could not read on half-way.
    pub fn read_file(&mut self, path: &str, sink: &mut dyn Write) -> Result<FileInfo, ClientError> {
        self.open(Request::ReadFile {
            path: path.to_owned(),
        })?;
        self.flush()?;
        let mut info = None;
        loop {
            match self.receive()? {
                Reply::File(found) => info = Some(found),
                Reply::Data(bytes) => sink.write_all(bytes).map_err(ClientError::Local)?,
                Reply::End => break,
                other => return Err(unexpected(&other)),
            }
        }
        self.in_conversation = false;
        info.ok_or_else(|| ClientError::Unexpected("the end of a file that never began".to_owned()))
    }

    /// Writes a file of the guest: all of `source` or, on any error, nothing.
    ///
    /// # Errors
    /// [`ClientError::Local`] if `source` failed: then drop the client; the guest's file is as
    /// it was.
    pub fn write_file(
        &mut self,
        path: &str,
        mode: Option<u32>,
        source: &mut dyn Read,
    ) -> Result<(), ClientError> {
        self.open(Request::WriteFile {
            path: path.to_owned(),
            mode,
        })?;
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            match read_some(source, &mut chunk)? {
                0 => break,
                count => self.push(&HostFrame::Data(&chunk[..count]))?,
            }
        }
        self.push(&HostFrame::End)?;
        self.flush()?;
        self.expect_done()
    }

    /// Lists a directory of the guest, in no order.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn list_dir(&mut self, path: &str) -> Result<Vec<DirEntry>, ClientError> {
        self.open(Request::ListDir {
            path: path.to_owned(),
        })?;
        self.flush()?;
        let mut entries = Vec::new();
        loop {
            match self.receive()? {
                Reply::Entries(more) => entries.extend(more),
                Reply::End => break,
                other => return Err(unexpected(&other)),
            }
        }
        self.in_conversation = false;
        Ok(entries)
    }

    /// What is at a path of the guest; a symbolic link at its end is not followed.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn stat(&mut self, path: &str) -> Result<FileStat, ClientError> {
        let path = path.to_owned();
        self.ask(Request::Stat { path }, |reply| match reply {
            Reply::Stat(stat) => Ok(stat),
            other => Err(unexpected(&other)),
        })
    }

    /// Makes a directory and its missing parents.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn make_dir(&mut self, path: &str, mode: Option<u32>) -> Result<(), ClientError> {
        self.command(Request::MakeDir {
            path: path.to_owned(),
            mode,
        })
    }

    /// Removes a file or directory.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn remove(&mut self, path: &str, recursive: bool) -> Result<(), ClientError> {
        self.command(Request::Remove {
            path: path.to_owned(),
            recursive,
        })
    }
}
