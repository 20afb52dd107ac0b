# Thin on purpose: makes sure that the pinned toolchain is there, then hands over to `cargo xtask`.

TOOLCHAIN  := $(shell sed -n 's/^channel *= *"\(.*\)"/\1/p' rust-toolchain.toml)
COMPONENTS := rust-src clippy rustfmt

ifdef SUDO_USER
# Under sudo the toolchain and target/ stay the caller's: xtask is built as the caller and runs as root.
USER_HOME := $(shell getent passwd $(SUDO_USER) | cut -d: -f6)
AS_USER   := sudo -u $(SUDO_USER) -H env PATH=$(USER_HOME)/.cargo/bin:$(PATH)
XTASK     := $(AS_USER) cargo build --quiet --locked --package xtask && $${CARGO_TARGET_DIR:-target}/debug/xtask
else
export PATH := $(PATH):$(HOME)/.cargo/bin
AS_USER :=
XTASK   := cargo xtask
endif

DEFAULT_bench := filter

.PHONY: help demo test bench mutants vm setup toolchain

help:
	@echo 'make demo     an internet in a box, and what egressd lets through'
	@echo 'make test     style, unit tests, root tests, demo, other kernels: what CI runs'
	@echo 'make bench    what the filter costs, against no filter and nftables; ARGS=dns: look-ups'
	@echo 'make mutants  are the tests able to fail? reverts one line at a time'
	@echo 'make vm       the root tests on other kernels; ARGS="6.1 -- names::"'
	@echo 'make setup    installs what the above need (they call it themselves)'

demo test bench mutants vm setup: toolchain
	@$(XTASK) $@ $(or $(ARGS),$(DEFAULT_$@))

toolchain:
	@command -v rustup >/dev/null || PATH="$(USER_HOME)/.cargo/bin:$$PATH" command -v rustup >/dev/null || \
	  { echo 'egressd: rustup is missing: install it from https://rustup.rs, then run make again' >&2; exit 1; }
	@command -v cc >/dev/null || { echo 'egressd: installing gcc, the linker of everything'; apt-get update -qq && apt-get install -qq -y --no-install-recommends gcc libc6-dev >/dev/null; }
	@have=$$($(AS_USER) rustup component list --installed --toolchain $(TOOLCHAIN) 2>/dev/null); \
	for c in $(COMPONENTS); do case "$$have" in *$$c*) ;; *) missing=1 ;; esac; done; \
	test -z "$$missing" || $(AS_USER) rustup toolchain install $(TOOLCHAIN) --profile minimal --no-self-update $(addprefix -c ,$(COMPONENTS))
