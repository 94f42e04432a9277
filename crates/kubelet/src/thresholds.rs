//! Hard eviction thresholds: below which amounts the node says that it is under pressure, and what it keeps for itself.
//! Signals, operators and quantities as in upstream's `--eviction-hard`. Pure.

use std::collections::BTreeMap;

use apimachinery::quantity::Quantity;

/// An amount of what there is in all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Amount {
    /// Bytes, or a number of processes.
    Absolute(i64),
    /// Thousandths of the capacity.
    PerMille(i64),
}

impl Amount {
    fn of(self, capacity: i64) -> i64 {
        match self {
            Amount::Absolute(amount) => amount,
            Amount::PerMille(share) => {
                i64::try_from(i128::from(capacity) * i128::from(share) / 1000).unwrap_or(i64::MAX)
            }
        }
    }

    fn parse(text: &str) -> Option<Self> {
        if let Some(percent) = text.strip_suffix('%') {
            let percent: f64 = percent.parse().ok().filter(|p| (0.0..=100.0).contains(p))?;
            return Some(Amount::PerMille((percent * 10.0).round() as i64));
        }
        Quantity::parse(text).ok().map(|quantity| quantity.value()).filter(|value| *value >= 0).map(Amount::Absolute)
    }
}

/// How much of something is left, of how much.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Level {
    pub available: i64,
    pub capacity: i64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Signal {
    Memory,
    /// Volumes, logs and writable layers.
    NodeFs,
    ImageFs,
    Pid,
}

impl Signal {
    const ALL: [(&'static str, Signal); 4] = [
        ("memory.available", Signal::Memory),
        ("nodefs.available", Signal::NodeFs),
        ("imagefs.available", Signal::ImageFs),
        ("pid.available", Signal::Pid),
    ];
}

/// At most one threshold for each signal; a signal without one never means pressure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Thresholds(BTreeMap<Signal, Amount>);

impl Default for Thresholds {
    /// Upstream's for memory and processes. For disks the 5 % of k3s: upstream's 10 and 15 % leave tens of gigabytes of a
    /// developer's large disk idle and keep their clusters from running anything.
    fn default() -> Self {
        Thresholds(BTreeMap::from([
            (Signal::Memory, Amount::Absolute(100 << 20)),
            (Signal::NodeFs, Amount::PerMille(50)),
            (Signal::ImageFs, Amount::PerMille(50)),
            (Signal::Pid, Amount::PerMille(50)),
        ]))
    }
}

impl Thresholds {
    /// Reads `memory.available<100Mi,nodefs.available<10%`, which replaces all defaults.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut all = BTreeMap::new();
        for one in text.split(',').map(str::trim).filter(|one| !one.is_empty()) {
            let (name, amount) =
                one.split_once('<').ok_or_else(|| format!("{one}: not of the form signal<quantity"))?;
            let signal = Signal::ALL.iter().find(|(known, _)| *known == name).map(|(_, signal)| *signal);
            let signal = signal.ok_or_else(|| {
                let names: Vec<&str> = Signal::ALL.iter().map(|(name, _)| *name).collect();
                format!("{name}: unknown signal, there are {}", names.join(", "))
            })?;
            let amount =
                Amount::parse(amount).ok_or_else(|| format!("{amount}: neither a quantity nor a percentage"))?;
            if all.insert(signal, amount).is_some() {
                return Err(format!("{name} is given twice"));
            }
        }
        Ok(Thresholds(all))
    }

    /// Whether less is left than there should be. What cannot be measured is not under pressure.
    pub fn crossed(&self, signal: Signal, level: Level) -> bool {
        level.capacity > 0 && level.available < self.reserved(signal, level.capacity)
    }

    /// What of `capacity` pods cannot have.
    pub fn reserved(&self, signal: Signal, capacity: i64) -> i64 {
        self.0.get(&signal).map_or(0, |amount| amount.of(capacity).min(capacity))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_threshold_is_crossed_below_it() {
        let level = |available| Level { available, capacity: 1000 };
        let thresholds = Thresholds::parse("memory.available<100, nodefs.available<7.5%,imagefs.available<0%").unwrap();
        let crossed = |signal, available| thresholds.crossed(signal, level(available));
        assert!(crossed(Signal::Memory, 99) && !crossed(Signal::Memory, 100));
        assert!(crossed(Signal::NodeFs, 74) && !crossed(Signal::NodeFs, 75));
        assert!(!crossed(Signal::ImageFs, 0) && !crossed(Signal::Pid, 0));
        assert!(!thresholds.crossed(Signal::Memory, Level::default()), "not measured");
        assert_eq!(thresholds.reserved(Signal::Memory, 50), 50);
        assert!(Thresholds::default().crossed(Signal::NodeFs, level(49)));
        assert!(!Thresholds::parse("").unwrap().crossed(Signal::Memory, level(0)));
    }

    #[test]
    fn bad_thresholds_say_why() {
        let refused = |text: &str| Thresholds::parse(text).unwrap_err();
        assert_eq!(refused("memory.available>1"), "memory.available>1: not of the form signal<quantity");
        assert!(refused("disk<1%").starts_with("disk: unknown signal, there are memory.available,"));
        for bad in ["pid.available<x", "pid.available<-1", "pid.available<101%", "pid.available<NaN%"] {
            assert!(refused(bad).ends_with("neither a quantity nor a percentage"), "{bad}");
        }
        assert_eq!(refused("pid.available<1,pid.available<2"), "pid.available is given twice");
    }
}
