//! What outlives the process under test: time, chance, the brokers, and the moment at which the process dies. Everything
//! here happens on one thread and in an order that the seed alone decides.

use std::cell::RefCell;
use std::ops::Range;
use std::panic::resume_unwind;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::kafka::Broker;
use crate::kafka::source::Partition;
use crate::model::time::EventTime;

/// The time of day at which every simulation begins, in microseconds.
pub const DAWN: i64 = 1_790_000_000_000_000;

/// The steps of a process at which it may die.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    /// It asks its source for the next event.
    Turn,
    /// It looks at the clock.
    Clock,
    /// A transaction is about to land.
    Transaction,
    /// A transaction has landed, and nobody has heard of it.
    Landed,
    /// The background commit is about to write a file or a log entry.
    Put,
    /// A step on the disk: half a file may be there.
    Disk,
}

/// When a process dies; shared with its disk, which is on another thread.
#[derive(Clone, Default)]
pub struct Doom(Arc<Mutex<Fate>>);

#[derive(Default)]
struct Fate {
    at: Option<(At, usize)>,
    dead: bool,
}

impl Doom {
    /// A process that dies at the step of a kind with this number; never where none is given.
    pub fn new(at: Option<(At, usize)>) -> Doom {
        Doom(Arc::new(Mutex::new(Fate { at, dead: false })))
    }

    /// Counts a step; tells whether the process is dead.
    pub fn step(&self, at: At) -> bool {
        let mut fate = self.0.lock().unwrap();
        match &mut fate.at {
            Some((kind, 0)) if *kind == at => fate.dead = true,
            Some((kind, left)) if *kind == at => *left -= 1,
            _ => {}
        }
        fate.dead
    }

    pub fn is_dead(&self) -> bool {
        self.0.lock().unwrap().dead
    }

    pub fn die(&self) {
        self.0.lock().unwrap().dead = true;
    }
}

/// What a dying process unwinds with.
pub struct Crash;

/// How much goes wrong, besides crashes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Trouble {
    /// Of a transaction that its answer is not what became of it, or that it does not happen.
    pub transactions: f64,
    /// Of a turn that the group moves partitions.
    pub rebalances: f64,
    /// Of a turn that the brokers go away for a while.
    pub outages: f64,
    /// Of a turn that the configuration is read again.
    pub reloads: f64,
}

pub struct World {
    pub chance: StdRng,
    pub broker: Broker,
    pub doom: Doom,
    pub trouble: Trouble,
    /// Records that the table `late` remembers, while what they were late for died with a process: their own rows, or
    /// the closing of their windows. Whether they are late is then for the new order of reading to say.
    pub torn: Vec<(Partition, Range<i64>)>,
    /// Where effects were ahead of the store at a death: what was said to be late may be in time when it is read again.
    pub ahead: Vec<(Partition, Range<i64>)>,
    started: Instant,
    elapsed: Duration,
    /// What happened, for people, and to see that a seed repeats itself.
    pub story: Vec<String>,
}

pub type Shared = Rc<RefCell<World>>;

impl World {
    pub fn new(seed: u64, broker: Broker, trouble: Trouble) -> Shared {
        Rc::new(RefCell::new(World {
            chance: StdRng::seed_from_u64(seed),
            broker,
            doom: Doom::default(),
            trouble,
            torn: Vec::new(),
            ahead: Vec::new(),
            started: Instant::now(),
            elapsed: Duration::ZERO,
            story: Vec::new(),
        }))
    }

    pub fn happens(&mut self, likely: f64) -> bool {
        likely > 0.0 && self.chance.random_bool(likely)
    }

    pub fn below(&mut self, end: usize) -> usize {
        self.chance.random_range(0..end.max(1))
    }

    pub fn elapsed(&self) -> Duration {
        self.elapsed
    }

    pub fn now(&self) -> Instant {
        self.started + self.elapsed
    }

    pub fn time_of_day(&self) -> EventTime {
        EventTime::from_micros(DAWN + self.elapsed.as_micros() as i64)
    }

    pub fn pass(&mut self, time: Duration) {
        self.elapsed += time;
    }

    pub fn tell(&mut self, what: impl Into<String>) {
        let at = self.elapsed.as_millis();
        self.story.push(format!("{at:>8} ms  {}", what.into()));
    }
}

/// Counts a step of the process; a dead one unwinds here and does nothing any more.
pub fn live(world: &Shared, at: At) {
    let doom = world.borrow().doom.clone();
    let was_dead = doom.is_dead();
    if doom.step(at) {
        if !was_dead {
            world.borrow_mut().tell(format!("the process dies at a step of {at:?}"));
        }
        resume_unwind(Box::new(Crash));
    }
}
