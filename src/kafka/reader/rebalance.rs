//! The part of the reader that carries out rebalances: asks the receiver where to start, tells it what to give up, and
//! only then answers librdkafka. Hands over no records.

use rdkafka::TopicPartitionList;
use rdkafka::consumer::{Consumer, RebalanceProtocol};
use rdkafka::error::KafkaError as Rd;
use rdkafka::topic_partition_list::Offset;
use tracing::{info, warn};

use super::*;

/// After how many failures it is said what may stand behind them.
const TRIES_BEFORE_HINT: u32 = 5;
const HANGING: &str = "committed offsets are told only once every transaction over them has ended, and one may never end, as \
                       where a broker without another replica was killed (hint: kafka-transactions.sh find-hanging tells, \
                       and abort ends it)";

impl Reader {
    pub(super) fn assign(&mut self, partitions: Vec<(String, i32)>) -> Going {
        let partitions = self.intern(partitions);
        let mut list = TopicPartitionList::with_capacity(partitions.len());
        // An empty list is an answer too: the group waits for the call.
        if !partitions.is_empty() {
            let client = self.member.consumer.client().native_ptr();
            for partition in &partitions {
                self.member.queue.forward(client, &partition.topic, partition.partition);
            }
            let assigned = self.look_up(&partitions)?;
            let highs: Vec<i64> = assigned.iter().map(|assigned| assigned.high).collect();
            let (start, answer) = Reply::new();
            self.send(SourceEvent::Assigned { partitions: assigned, start })?;
            let Some(starts) = self.wait(answer, "Assigned")? else { return Ok(()) };
            if let Err(error) = check_starts(&partitions, &starts) {
                return self.fail(error);
            }
            for ((partition, start), high) in partitions.iter().zip(starts).zip(highs) {
                let next = start.max(0);
                self.set(partition, Some(Position { next, high, is_at_end: false, is_displaced: false }));
                self.member.started(partition.clone(), start);
                let offset = if start == BEGINNING { Offset::Beginning } else { Offset::Offset(start) };
                // The offset goes with the assignment: a seek after it would race with the first fetch.
                if let Err(error) = list.add_partition_offset(&partition.topic, partition.partition, offset) {
                    warn!(%partition, %error, "failed to set a start offset");
                }
            }
        }
        if let Err(error) = self.member.consumer.incremental_assign(&list) {
            return self.assign_failed(partitions, error);
        }
        self.unanswered = None;
        info!(added = partitions.len(), assigned = self.assigned, "kafka partitions assigned");
        Ok(())
    }

    /// The group moved on while we asked: the next rebalance mends it, once the receiver has let go again.
    fn assign_failed(&mut self, partitions: Vec<Partition>, error: Rd) -> Going {
        warn!(%error, "the group took an assignment back before it began");
        for partition in &partitions {
            self.set(partition, None);
            self.member.ended(partition);
        }
        if partitions.is_empty() {
            return Ok(());
        }
        let (done, answer) = Reply::new();
        self.send(SourceEvent::Revoked { partitions, lost: true, done })?;
        self.wait(answer, "Revoked").map(|_| ())
    }

    pub(super) fn revoke(&mut self, partitions: Vec<(String, i32)>) -> Going {
        let partitions = self.intern(partitions);
        let held: Vec<Partition> = partitions.iter().filter(|p| self.is_assigned(p)).cloned().collect();
        if !held.is_empty() {
            let lost = self.member.consumer.assignment_lost();
            if lost {
                warn!(partitions = held.len(), "kafka partitions lost: the group went on without us");
            }
            let (done, answer) = Reply::new();
            self.send(SourceEvent::Revoked { partitions: held.clone(), lost, done })?;
            self.wait(answer, "Revoked")?;
        }
        let mut list = TopicPartitionList::with_capacity(partitions.len());
        for partition in &partitions {
            self.set(partition, None);
            self.member.ended(partition);
            list.add_partition(&partition.topic, partition.partition);
        }
        let consumer = &self.member.consumer;
        let unassigned = match consumer.rebalance_protocol() {
            RebalanceProtocol::Cooperative => consumer.incremental_unassign(&list),
            RebalanceProtocol::Eager | RebalanceProtocol::None => consumer.unassign(),
        };
        match unassigned {
            Ok(()) => self.unanswered = None,
            Err(error) => warn!(%error, "failed to give up kafka partitions"),
        }
        info!(removed = held.len(), assigned = self.assigned, "kafka partitions revoked");
        Ok(())
    }

    /// Asks the broker about new partitions until it answers.
    fn look_up(&mut self, partitions: &[Partition]) -> Result<Vec<Assigned>, Stopped> {
        for tries in 1.. {
            match lookup::assigned(&self.member.consumer, partitions) {
                Ok(assigned) => return Ok(assigned),
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    warn!(error, tries, "retrying to look up the assigned kafka partitions");
                }
            }
            if tries == TRIES_BEFORE_HINT {
                warn!("{HANGING}");
            }
            let until = Instant::now() + RETRY;
            while Instant::now() < until {
                self.poll(FULL)?;
                self.tell_errors()?;
                self.probe()?;
            }
        }
        Err(Stopped)
    }
}

fn check_starts(partitions: &[Partition], starts: &[i64]) -> Result<(), KafkaError> {
    if partitions.len() != starts.len() {
        let expected = format!("one start offset for each of {} partitions", partitions.len());
        return Err(KafkaError::Answer { expected, got: starts.len().to_string() });
    }
    match partitions.iter().zip(starts).find(|(_, start)| **start < 0 && **start != BEGINNING) {
        Some((partition, start)) => {
            let expected = format!("an offset or {BEGINNING} for the beginning of {partition}");
            Err(KafkaError::Answer { expected, got: start.to_string() })
        }
        None => Ok(()),
    }
}
