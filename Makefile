# make book   install into .venv, run the chapters that are not up to date, build the book
# make html   install into .venv, build the book from the committed chapters
# make test   install into .venv, fetch the real model (about 93 MB, once), check style and
#             types, run every test and re-execute every chapter, two at a time on one thread each
# make verify install into .venv, recompute every row in results/ and compare it
# make clean  forget the built book        make distclean  forget .venv too

PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
STAMP := .venv/installed
OFFLINE := HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1

.PHONY: book html test verify clean distclean
.DEFAULT_GOAL := book

book: $(STAMP)
	$(BIN)/acelib run --all --update
	$(BIN)/acelib book

html: $(STAMP)
	$(BIN)/acelib book

test: $(STAMP)
	$(BIN)/acelib fetch smollm2-135m
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy
	$(OFFLINE) $(BIN)/python -m pytest -n 2 --dist loadgroup tests
	$(OFFLINE) $(BIN)/python -m pytest -n 2 --dist loadfile --nbval --nbval-current-env \
		--nbval-sanitize-with tests/nbval.cfg notebooks

verify: $(STAMP)
	HF_HUB_OFFLINE=1 $(BIN)/acelib verify

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { \
		echo "Python 3.11 or newer is needed; name it: make PYTHON=/path/to/python3" >&2; exit 1; }
	@echo "installing into .venv (once; a few minutes)"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
		-e '.[book,real,test]'
	@touch $@

clean:
	rm -rf _build

distclean: clean
	rm -rf .venv acelib.egg-info
