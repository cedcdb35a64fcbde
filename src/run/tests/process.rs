//! What a process under test is given in place of its sink and of the service around it: an exit, a clock, and the
//! background committer. All of them go on only when the conductor gives them a turn, as far as chance says.

use std::cell::RefCell;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Result;
use futures::future::{BoxFuture, Either, FutureExt, select};
use tokio::runtime::Handle;

use super::kafka::{SimulatedTransactions, Who};
use super::world::{At, Shared, live};
use crate::kafka::sink::Offset;
use crate::model::time::EventTime;
use crate::run::clock::Clock;
use crate::run::corrector::Corrector;
use crate::run::outlet::{Exit, Flush, Landed, may_pass};
use crate::run::service;
use crate::run::settings::Settings;
use crate::store::tests::faulty::Faults;
use crate::store::{Store, StoreError};
use crate::telemetry::Telemetry;

/// The committer in the background. It stands still before each write until it is given a step.
pub struct Committer {
    pub world: Shared,
    pub runtime: Handle,
    pub store: Arc<Store>,
    pub telemetry: Telemetry,
    pub faults: Arc<Faults>,
    /// Whether writes wait to be let through.
    pub is_stepping: Arc<AtomicBool>,
    pub running: Option<BoxFuture<'static, Result<(), StoreError>>>,
    /// A failure that no retry mends.
    pub failed: Option<StoreError>,
    /// The corrections, in the background as well.
    pub corrector: Option<(Corrector, Arc<Settings>)>,
}

impl Committer {
    /// Begins a commit now and then, or goes a step on with the one under way.
    pub fn go_on(&mut self) {
        let (begins, goes_on) = {
            let mut world = self.world.borrow_mut();
            (world.happens(0.08), world.happens(0.7))
        };
        if self.running.is_none() && begins {
            let (store, telemetry) = (self.store.clone(), self.telemetry.clone());
            self.running = Some(async move { service::commit(&store, &telemetry).await }.boxed());
            self.step();
        } else if self.running.is_some() && goes_on {
            self.faults.let_one();
            self.step();
        }
        if self.corrector.is_some() && self.world.borrow_mut().happens(0.02) {
            self.correct();
        }
    }

    /// Corrects what there is to correct by now; returns how many windows have a new version.
    pub fn correct(&mut self) -> usize {
        let Some((corrector, settings)) = &mut self.corrector else { return 0 };
        let mut windows = 0;
        for view in settings.views.iter().filter(|view| view.correct_every.is_some()) {
            // Nothing of it fails here: it writes nothing itself.
            windows += self.runtime.block_on(corrector.correct(view)).unwrap();
        }
        self.world.borrow_mut().tell(format!("{windows} windows are corrected"));
        windows
    }

    /// Goes on until the next write waits, or nothing is left to do.
    pub fn step(&mut self) {
        let Some(running) = self.running.take() else { return };
        self.is_stepping.store(true, Ordering::SeqCst);
        let faults = self.faults.clone();
        let waiting = pin!(faults.waiting.notified());
        match self.runtime.block_on(select(running, waiting)) {
            Either::Left((done, _)) => self.done(done),
            Either::Right(((), running)) => self.running = Some(running),
        }
        self.is_stepping.store(false, Ordering::SeqCst);
    }

    /// Ends the commit under way: somebody waits for the next.
    pub fn drain(&mut self) {
        if let Some(running) = self.running.take() {
            self.faults.let_one();
            let done = self.runtime.block_on(running);
            self.done(done);
        }
    }

    pub fn done(&mut self, done: Result<(), StoreError>) {
        self.world.borrow_mut().tell(format!("a commit in the background ends: {}", done.is_ok()));
        self.failed = done.err().filter(|error| !error.retriable());
    }
}

/// The clock of the process; while it waits, the background goes on.
pub struct SimulatedClock {
    pub world: Shared,
    pub committer: Rc<RefCell<Committer>>,
}

impl Clock for SimulatedClock {
    fn time_of_day(&self) -> EventTime {
        self.world.borrow().time_of_day()
    }

    fn now(&self) -> std::time::Instant {
        live(&self.world, At::Clock);
        self.world.borrow().now()
    }

    fn wait(&self, wait: Duration) {
        live(&self.world, At::Clock);
        self.world.borrow_mut().pass(wait);
        let mut committer = self.committer.borrow_mut();
        committer.drain();
        committer.go_on();
        committer.drain();
    }
}

/// A flush on its way: the real steps of the outlet, taken when chance says.
pub struct Carrier {
    pub world: Shared,
    who: Who,
    pub flush: Option<Flush>,
    pub again: bool,
    pub not_before: Duration,
    pub answer: Option<Landed>,
    pub failed: bool,
}

impl Carrier {
    pub fn new(world: Shared, who: Who) -> Carrier {
        Carrier { world, who, flush: None, again: false, not_before: Duration::ZERO, answer: None, failed: false }
    }

    pub fn go_on(&mut self) {
        let now = self.world.borrow().elapsed();
        let Some(flush) = self.flush.as_mut().filter(|_| now >= self.not_before) else { return };
        match flush.carry(self.again, &mut SimulatedTransactions(&self.world, self.who)) {
            Ok(()) => {
                let at = |offset: &Offset| format!("{}[{}] {}", offset.topic, offset.partition, offset.next);
                let offsets: Vec<String> = flush.offsets.iter().map(at).collect();
                let told = format!("{} effects land, with {}", flush.records.len(), offsets.join(", "));
                self.world.borrow_mut().tell(told);
                self.answer = Some(Landed::Done { through: flush.through });
                self.flush = None;
            }
            Err(error) if may_pass(&error) => {
                self.again = true;
                self.not_before = now + Duration::from_millis(500);
            }
            Err(error) => {
                (self.failed, self.flush) = (true, None);
                self.answer = Some(Landed::Failed(error));
            }
        }
    }
}

pub struct SimulatedExit(pub Rc<RefCell<Carrier>>);

impl Exit for SimulatedExit {
    fn send(&mut self, flush: Flush) -> Result<()> {
        let mut carrier = self.0.borrow_mut();
        assert!(carrier.flush.is_none() && carrier.answer.is_none(), "one flush at a time");
        anyhow::ensure!(!carrier.failed, "the sink has stopped");
        (carrier.flush, carrier.again) = (Some(flush), false);
        Ok(())
    }

    fn landed(&mut self, wait: Duration) -> Result<Option<Landed>> {
        let mut carrier = self.0.borrow_mut();
        let world = carrier.world.clone();
        let deadline = world.borrow().elapsed() + wait;
        loop {
            let goes_on = !wait.is_zero() || world.borrow_mut().happens(0.4);
            if goes_on && carrier.answer.is_none() {
                carrier.go_on();
            }
            if carrier.answer.is_some() && (!wait.is_zero() || world.borrow_mut().happens(0.6)) {
                return Ok(carrier.answer.take());
            }
            if carrier.flush.is_none() || world.borrow().elapsed() >= deadline {
                return Ok(None);
            }
            world.borrow_mut().pass(Duration::from_millis(100));
        }
    }

    fn call_off(&mut self) {
        let mut carrier = self.0.borrow_mut();
        if carrier.flush.take().is_some() {
            carrier.answer = Some(Landed::CalledOff);
        }
    }

    fn in_flight(&self) -> bool {
        let carrier = self.0.borrow();
        carrier.flush.is_some() || carrier.answer.is_some()
    }
}
