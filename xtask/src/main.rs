//! Developer tasks: `cargo xtask <task> [arguments]`.

mod codegen;

use anyhow::{Result, bail};

const USAGE: &str = "usage: cargo xtask <task> [arguments]

tasks:
  codegen [--check]   generate the schema data of apimachinery from upstream's published OpenAPI";

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let Some((task, rest)) = args.split_first() else { bail!("{USAGE}") };
    match task.as_str() {
        "codegen" => codegen::run(rest),
        _ => bail!("no task {task:?}\n\n{USAGE}"),
    }
}
