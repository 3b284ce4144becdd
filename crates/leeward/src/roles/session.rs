//! Frames over a byte stream. Cuts and joins; what frames mean is their owners' business.

use bytes::Bytes;
use leeward_wire::{
    data::{DataError, DataMessage},
    frame::{Decoder, Frame, FrameError, Kind, encode_header},
};
use std::{io, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    time::timeout,
};

/// How long one frame may take to be written: a peer that takes nothing for so long is dead.
const WRITE_TIMEOUT: Duration = Duration::from_secs(20);
/// Bytes read at once.
const READ_BYTES: usize = 256 << 10;

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The other end closed it.
    #[error("the other end closed the session")]
    Closed,
    /// The stream failed.
    #[error("the session's connection failed")]
    Io(#[from] io::Error),
    /// The bytes are not frames.
    #[error("the session's bytes are not valid")]
    Frame(#[from] FrameError),
    /// A frame is not its message.
    #[error("a message of the session is not valid")]
    Message(#[from] DataError),
    /// Nothing came for too long.
    #[error("the other end was silent for {0:?}")]
    Silent(Duration),
    /// A message came out of turn.
    #[error("the other end sent {0} out of turn")]
    OutOfTurn(&'static str),
}

/// The reading half of a session.
pub struct FrameReader<R> {
    stream: R,
    decoder: Decoder,
    buffer: Vec<u8>,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    /// Reads frames from `stream`.
    pub fn new(stream: R) -> Self {
        FrameReader { stream, decoder: Decoder::new(), buffer: vec![0; READ_BYTES] }
    }

    /// The next frame. Safe to drop while it waits: nothing that came in is lost.
    ///
    /// # Errors
    /// [`SessionError::Closed`] at the end of the stream, also in the middle of a frame.
    pub async fn next(&mut self) -> Result<Frame, SessionError> {
        loop {
            if let Some(frame) = self.decoder.pop()? {
                return Ok(frame);
            }
            match self.stream.read(&mut self.buffer).await {
                Ok(0) => return Err(SessionError::Closed),
                Ok(read) => self.decoder.push(&self.buffer[..read]),
                // A peer that is killed ends TLS without its goodbye.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    return Err(SessionError::Closed);
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The next data message, within `limit`.
    ///
    /// # Errors
    /// As [`Self::next`], and [`SessionError::Silent`].
    pub async fn message(&mut self, limit: Duration) -> Result<DataMessage, SessionError> {
        let frame =
            timeout(limit, self.next()).await.map_err(|_| SessionError::Silent(limit))??;
        Ok(DataMessage::from_frame(frame)?)
    }
}

impl<R: AsyncRead + Send + Unpin + 'static> FrameReader<R> {
    /// The same reader, whatever it reads from.
    pub fn boxed(self) -> BoxReader {
        FrameReader { stream: Box::new(self.stream), decoder: self.decoder, buffer: self.buffer }
    }
}

/// The reading half of a session over any stream.
pub type BoxReader = FrameReader<Box<dyn AsyncRead + Send + Unpin>>;

/// The writing half of a session over any stream.
pub type BoxWriter = FrameWriter<Box<dyn AsyncWrite + Send + Unpin>>;

/// The writing half of a session.
pub struct FrameWriter<W> {
    stream: W,
}

impl<W: AsyncWrite + Send + Unpin + 'static> FrameWriter<W> {
    /// The same writer, whatever it writes to.
    pub fn boxed(self) -> BoxWriter {
        FrameWriter { stream: Box::new(self.stream) }
    }
}

impl<W: AsyncWrite + Unpin> FrameWriter<W> {
    /// Writes frames to `stream`.
    pub fn new(stream: W) -> Self {
        FrameWriter { stream }
    }

    /// Writes a whole frame and flushes it.
    ///
    /// # Errors
    /// When the stream fails or takes nothing for 20 s. The session is over then.
    pub async fn send(&mut self, frame: &[u8]) -> Result<(), SessionError> {
        let write = async {
            self.stream.write_all(frame).await?;
            self.stream.flush().await
        };
        timeout(WRITE_TIMEOUT, write).await.map_err(|_| SessionError::Silent(WRITE_TIMEOUT))??;
        Ok(())
    }

    /// Writes a message and flushes it.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub async fn message(&mut self, message: &DataMessage) -> Result<(), SessionError> {
        self.send(&message.to_frame()).await
    }

    /// Writes a record without copying it; not flushed, more follow or a commit does.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub async fn record(&mut self, record: &Bytes) -> Result<(), SessionError> {
        let header = encode_header(Kind::Record, record);
        let write = async {
            self.stream.write_all(&header).await?;
            self.stream.write_all(record).await
        };
        timeout(WRITE_TIMEOUT, write).await.map_err(|_| SessionError::Silent(WRITE_TIMEOUT))??;
        Ok(())
    }

    /// Closes the stream properly, as far as the other end still listens.
    pub async fn close(&mut self) {
        let _ = timeout(Duration::from_secs(1), self.stream.shutdown()).await;
    }
}
