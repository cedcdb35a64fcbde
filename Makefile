# One command per wish. What each does is in the script or program it names.

.DEFAULT_GOAL := help
.PHONY: help demo test soak check bench peers setup kafka-up kafka-down clean

export PATH := $(HOME)/.cargo/bin:$(PATH)
ARGS ?=
BENCH ?=
PROGRAM ?=

help: ## say what there is
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

demo: ## run everything in one process on a simulated fleet; ARGS="--seconds 60 --seed 3 --data DIR --report FILE"
	@tests/tools/setup.sh build
	cargo run --locked -- demo $(ARGS)

test: ## run every test, on a real Kafka too; E2E_RECORDS=20000 E2E_KILLS=2 make it shorter
	@tests/tools/test.sh

soak: ## run the long tests, seed after seed, for a night; SOAK_MINUTES=60 SOAK_SEED=7 make it shorter, or the same again
	@tests/tools/soak.sh

check: ## formatting, lints, and the map of the rooms
	@tests/tools/setup.sh check
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings
	cargo test --locked --test it tidy

bench: ## measure, with a real Kafka too; writes bench-results.csv into the build folder; BENCH=name for one
	@tests/tools/setup.sh test
	@tests/tools/kafka.sh start && eval "$$(tests/tools/kafka.sh env)" && \
		cargo bench --locked --bench bench -- $(BENCH); code=$$?; tests/tools/kafka.sh remove; exit $$code

peers: ## measure one query against Flink SQL and Kafka Streams; ARGS="--records 1000000 --runs 1"; PROGRAM=a built one
	@tests/tools/setup.sh test
	@[ -n "$(PROGRAM)" ] || cargo build --release --locked
	@"$${BW_CACHE:-$$HOME/.cache/bellwether}/venv/bin/python" benches/peers/run.py \
		--bellwether "$(or $(PROGRAM),$${CARGO_TARGET_DIR:-target}/release/bellwether)" $(ARGS)

setup: ## install what the tests need
	@tests/tools/setup.sh test

kafka-up: ## start a real Kafka of your own on this machine, and say where
	@tests/tools/kafka.sh start

kafka-down: ## stop that Kafka and delete its data
	@tests/tools/kafka.sh remove

clean: ## delete what was built
	cargo clean
