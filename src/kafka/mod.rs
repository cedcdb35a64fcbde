//! Sources, the transactional sink, the embedded broker, topic administration.
