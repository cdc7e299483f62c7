//! A line with a delay, and a load over it: what `scripts/bench reload` measures with.

mod delay;
mod keep;
mod load;
mod queue;
mod watch;

use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::load::Order;

const USAGE: &str = "usage: hapilot-bench-line delay QUEUE MILLISECONDS
       hapilot-bench-line load TO FROM[,FROM...] PER-SECOND SECONDS PATIENCE-SECONDS
       hapilot-bench-line keep TO CLIENTS SECONDS
       hapilot-bench-line watch ADDRESS";

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["delay", queue, milliseconds] => {
            let queue = number(queue)?.try_into().context("read the queue's number")?;
            delay::run(queue, Duration::from_millis(number(milliseconds)?))
        }
        ["load", to, from, rate, seconds, patience] => load::run(&Order {
            to: to.parse().with_context(|| format!("read the address {to}"))?,
            from: from
                .split(',')
                .map(|from| from.parse().with_context(|| format!("read the address {from}")))
                .collect::<Result<_>>()?,
            every: Duration::from_secs(1) / number(rate)?.max(1).try_into()?,
            count: (number(rate)? * number(seconds)?).try_into()?,
            patience: Duration::from_secs(number(patience)?),
        }),
        ["keep", to, clients, seconds] => keep::run(
            to.parse().with_context(|| format!("read the address {to}"))?,
            number(clients)?,
            Duration::from_secs(number(seconds)?),
        ),
        ["watch", address] => {
            watch::run(address.parse().with_context(|| format!("read the address {address}"))?)
        }
        _ => bail!(USAGE),
    }
}

fn number(text: &str) -> Result<u64> {
    text.parse().with_context(|| format!("read the number {text}"))
}
