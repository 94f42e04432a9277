//! Reading log files: where the last lines begin, and line after line from there.

use std::io::{self, SeekFrom};
use std::path::Path;

use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt};

const BLOCK_BYTES: usize = 64 * 1024;
/// Runtimes cut lines at 16 KiB; a file with longer ones is not a log, and its lines are passed on in parts.
const LINE_BYTES_MAX: usize = 1024 * 1024;

/// An open log file, read forwards by whole lines.
pub struct LineReader {
    file: File,
    buffer: Vec<u8>,
    /// How much of `buffer` has been handed out.
    taken: usize,
}

impl LineReader {
    /// Opens a log at the beginning of its last `tail` lines, or at its beginning.
    pub async fn open(path: &Path, tail: Option<u64>) -> io::Result<Self> {
        let mut file = File::open(path).await?;
        if let Some(tail) = tail {
            let start = tail_start(&mut file, tail).await?;
            file.seek(SeekFrom::Start(start)).await?;
        }
        Ok(LineReader { file, buffer: Vec::new(), taken: 0 })
    }

    /// The next whole line without its line break; `None` where the file ends for now. Bytes behind the last line break are kept
    /// until the line is whole.
    pub async fn next(&mut self) -> io::Result<Option<&[u8]>> {
        let mut searched = self.taken;
        loop {
            if let Some(length) = self.buffer[searched..].iter().position(|byte| *byte == b'\n') {
                let (start, end) = (self.taken, searched + length);
                self.taken = end + 1;
                return Ok(Some(&self.buffer[start..end]));
            }
            if self.buffer.len() - self.taken >= LINE_BYTES_MAX {
                return Ok(Some(self.rest()));
            }
            self.buffer.drain(..self.taken);
            self.taken = 0;
            searched = self.buffer.len();
            self.buffer.reserve(BLOCK_BYTES);
            if self.file.read_buf(&mut self.buffer).await? == 0 {
                return Ok(None);
            }
        }
    }

    /// What stands behind the last line break.
    pub fn rest(&mut self) -> &[u8] {
        let start = std::mem::replace(&mut self.taken, self.buffer.len());
        &self.buffer[start..]
    }
}

/// Where the last `lines` lines begin; a last line without its break does not count. Reads backwards, only as far as needed.
async fn tail_start(file: &mut File, lines: u64) -> io::Result<u64> {
    let mut end = file.seek(SeekFrom::End(0)).await?;
    // The line break that ends the last wanted line is not counted, hence one more.
    let mut breaks_left = lines.saturating_add(1);
    let mut block = vec![0; BLOCK_BYTES];
    while end > 0 {
        let start = end.saturating_sub(BLOCK_BYTES as u64);
        let length = usize::try_from(end - start).expect("a block fits into memory");
        file.seek(SeekFrom::Start(start)).await?;
        file.read_exact(&mut block[..length]).await?;
        for at in (0..length).rev().filter(|at| block[*at] == b'\n').collect::<Vec<_>>() {
            breaks_left -= 1;
            if breaks_left == 0 {
                return Ok(start + at as u64 + 1);
            }
        }
        end = start;
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn lines(content: &[u8], tail: Option<u64>) -> (Vec<String>, String) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), content).unwrap();
        let mut reader = LineReader::open(file.path(), tail).await.unwrap();
        let mut seen = Vec::new();
        while let Some(line) = reader.next().await.unwrap() {
            seen.push(String::from_utf8(line.to_vec()).unwrap());
        }
        (seen, String::from_utf8(reader.rest().to_vec()).unwrap())
    }

    #[tokio::test]
    async fn the_last_lines() {
        let strings = |lines: &[&str]| lines.iter().map(|line| (*line).to_owned()).collect::<Vec<_>>();
        assert_eq!(lines(b"a\nb\nc\n", None).await, (strings(&["a", "b", "c"]), String::new()));
        assert_eq!(lines(b"a\nb\nc\n", Some(2)).await, (strings(&["b", "c"]), String::new()));
        assert_eq!(lines(b"a\nb\nc\n", Some(9)).await, (strings(&["a", "b", "c"]), String::new()));
        assert_eq!(lines(b"a\nb\nc\n", Some(0)).await, (vec![], String::new()));
        assert_eq!(lines(b"a\nb\nhalf", Some(1)).await, (strings(&["b"]), "half".to_owned()));
        assert_eq!(lines(b"", Some(3)).await, (vec![], String::new()));
    }

    #[tokio::test]
    async fn lines_across_blocks() {
        let long: String = (0..20_000).map(|n| format!("line {n}\n")).collect();
        assert!(long.len() > 3 * BLOCK_BYTES);
        let (all, _) = lines(long.as_bytes(), None).await;
        assert_eq!(all.len(), 20_000);
        for tail in [1u64, 7_000, 15_000] {
            let (last, _) = lines(long.as_bytes(), Some(tail)).await;
            assert_eq!(last, all[all.len() - tail as usize..]);
        }
    }

    #[tokio::test]
    async fn a_line_without_end_passes_in_parts() {
        let (parts, rest) = lines(&vec![b'x'; LINE_BYTES_MAX + 10], None).await;
        assert_eq!(parts.iter().map(String::len).sum::<usize>() + rest.len(), LINE_BYTES_MAX + 10);
    }
}
