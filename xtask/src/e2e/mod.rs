//! Placeholder while the runner is being written.
pub fn run(_: &[String]) -> anyhow::Result<()> {
    anyhow::bail!("pending")
}
