//! Termination messages: from the file that the container wrote, or the end of its log.

use std::path::Path;

use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};

use crate::runtime::ContainerView;

const MAX_MESSAGE_BYTES: u64 = 4096;
const MAX_LOG_BYTES: usize = 2048;
const MAX_LOG_LINES: usize = 80;
/// Enough of a log to hold the last lines with their heads.
const LOG_TAIL_BYTES: u64 = 32 * 1024;

/// The message of a container that has ended; the runtime's own if it left none.
pub async fn read(container: &ContainerView) -> String {
    let file = match &container.message_file {
        Some(path) => read_file(path).await,
        None => String::new(),
    };
    if file.is_empty() && container.message_from_logs && container.exit_code != 0 {
        return last_lines(&read_tail(&container.log_path).await);
    }
    // As upstream: what the runtime says comes first, on its own line.
    match (container.message.is_empty(), file.is_empty()) {
        (false, false) => format!("{}: {file}", container.message),
        (false, true) => container.message.clone(),
        _ => file,
    }
}

async fn read_file(path: &Path) -> String {
    let mut bytes = Vec::new();
    if let Ok(file) = tokio::fs::File::open(path).await {
        let _ = file.take(MAX_MESSAGE_BYTES).read_to_end(&mut bytes).await;
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

async fn read_tail(path: &Path) -> String {
    let mut bytes = Vec::new();
    if let Ok(mut file) = tokio::fs::File::open(path).await {
        let length = file.metadata().await.map_or(0, |meta| meta.len());
        if file.seek(std::io::SeekFrom::Start(length.saturating_sub(LOG_TAIL_BYTES))).await.is_ok() {
            let _ = file.take(LOG_TAIL_BYTES).read_to_end(&mut bytes).await;
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The last lines of a log in CRI format (`<time> <stream> <tag> <text>`), without their heads.
fn last_lines(log: &str) -> String {
    let mut text = String::new();
    let lines: Vec<&str> = log.lines().collect();
    for line in lines.iter().skip(lines.len().saturating_sub(MAX_LOG_LINES)) {
        let mut parts = line.splitn(4, ' ');
        let (Some(_), Some(_), Some(tag)) = (parts.next(), parts.next(), parts.next()) else { continue };
        text.push_str(parts.next().unwrap_or_default());
        if tag != "P" {
            text.push('\n');
        }
    }
    let mut start = text.len().saturating_sub(MAX_LOG_BYTES);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    text.split_off(start)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_cut_and_partial_lines_joined() {
        let log = "2026-01-01T00:00:00Z stdout P half \n2026-01-01T00:00:00Z stdout F line\nbroken\n\
                   2026-01-01T00:00:01Z stderr F last";
        assert_eq!(last_lines(log), "half line\nlast\n");
        let long = "t stdout F é".to_owned() + &"é".repeat(3000);
        assert!(last_lines(&long).len() <= MAX_LOG_BYTES);
    }
}
