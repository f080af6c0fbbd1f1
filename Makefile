# Each target that runs Python takes the newest CPython it supports; `make test PYTHON=python3.12` takes another.
pick = python=$$(python3 tools/pick_python.py) && version=$$("$$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
# $(1): a folder of .venv, $(2): a dependency group. Linters have a venv of their own: a new Python often comes before their wheels for it.
venv = $(pick) && "$$python" tools/make_venv.py "$$python" .venv/$(1) -e . --group pyproject.toml:$(2) && bin=.venv/$(1)/bin

.DEFAULT_GOAL := help
.PHONY: help demo test test-release test-patch-release test-lowest coverage mutants docs release-check conformance fuzz faults race bench soak applies neighbours packages lint clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /  make \1	/p' Makefile | expand -t 28

demo: ## serve incompatible apps from one worker, until Ctrl-C (PORT=8000, PYTHON=the newest found)
	@$(pick) && exec "$$python" examples/demo/demo.py

test: ## run the tests, two a core at a time, those that measure time last (ARGS="-k routing", JOBS=0 for one by one, PYTHON=the newest found)
	@$(call venv,py$$version,test) && exec $$bin/python -m pytest -n $(or $(JOBS),auto) $(ARGS)

# What is the same on every release of CPython: text, tables, the command line, pages, tools, what sockets do, and which mounts are changed.
# All else can differ between releases, and did: interpreters and their end, what an app finds inside, trials, deadlines, signals, the life of
# a worker. New tests belong there too. That mounts are replaced and end is shown on each release by test_reload, test_replace and
# test_teardown, so the tests of `isowsgi apply` are not needed there; nor is what our own code does with hostile clients (test_hostile) and with
# faults (test_faults, test_contained). All of them run on the oldest and on the newest release, with a shared GIL and with own ones, but for
# what `test-oldest` leaves out.
same_on_each_release = $(addprefix tests/,$(addsuffix .py,test_alternatives test_answers test_applied test_architecture \
	test_bench test_calls test_cgroups test_controlgroups test_cli_page test_client test_commands test_configuration test_control_frames test_controlmessages \
	test_declares test_differences test_docs test_fuzz test_gunicorn_parts test_include test_livetable test_logformat test_messages \
	test_metrics test_exporting test_importing test_landlock test_pythonfolders test_wallhints test_migrate_page test_origins test_peek test_permission test_pieces test_placement test_projects test_redirects test_report test_rounds test_routing test_run test_scheduling test_scoreboard test_settings test_shares test_snapshot \
	test_sender test_soak test_static test_status test_tenants test_statusview test_tools test_verdicts $(addprefix functional/,test_walled_sites test_alerts test_ansible test_applies test_apply test_apply_kills test_apply_random test_conformance test_contained \
	test_deploy test_faults test_hostile test_hosts test_logs test_operate test_paths test_plan test_proxy_protocol test_routing_safety test_status test_attacks test_users \
	test_balancer test_image test_imports test_kubernetes test_machines test_leaving test_static test_tls_hosts test_zero_to_served)))

test-release: ## run the tests of what differs between releases of CPython (PYTHON=python3.12, ARGS and JOBS as for test)
	@$(call venv,py$$version,test) && exec $$bin/python -m pytest -n $(or $(JOBS),auto) $(addprefix --ignore=,$(same_on_each_release)) $(ARGS)

# What is about other programs (balancers, other servers' files, Kubernetes) and about our own tools and pages. Nor do changes by chance and
# kills amid a change say more with a shared GIL than test_apply does.
of_other_programs = $(addprefix tests/,$(addsuffix .py,test_bench test_docs test_fuzz test_migrate_page \
	test_scheduling test_soak test_tools $(addprefix functional/,test_ansible test_applies test_apply_kills test_apply_random test_balancer \
	test_image test_imports test_kubernetes test_machines test_zero_to_served)))

.PHONY: test-oldest
test-oldest: ## as test, where another release had what is about other programs and our own tools (PYTHON=python3.11)
	@$(MAKE) --no-print-directory test ARGS='$(addprefix --ignore=,$(of_other_programs)) $(ARGS)'

# Between releases of one minor version the library is the same, and what differs is how sound interpreters are: these need one of them.
same_in_a_minor_version = $(addprefix tests/,$(addsuffix .py,test_http test_plain test_response test_tls $(addprefix functional/,test_hooks \
	test_processes test_replace test_shell test_tls test_websockets test_worker_settings test_wsgi)))

test-patch-release: ## as test-release, where another release of the same minor version had that
	@$(MAKE) --no-print-directory test-release ARGS='$(addprefix --ignore=,$(same_in_a_minor_version)) $(ARGS)'

# The parts that use a dependency: config file, command, status page, metrics, table in the log, and requests through gunicorn's parser.
lowest_tests = $(addprefix tests/,$(addsuffix .py,test_gunicorn_parts test_configuration test_settings test_metrics test_snapshot \
	test_status test_cli_page test_control functional/test_status functional/test_operate))

test-lowest: ## run a part of the tests with the lowest version of each dependency that is allowed; under a minute
	@$(pick) && lowest=$$("$$python" tools/lowest_versions.py) && \
	"$$python" tools/make_venv.py "$$python" .venv/lowest$$version $$lowest "pytest>=8" pytest-xdist requests hypothesis && \
	exec .venv/lowest$$version/bin/python -m pytest -q -n auto -m "not slow and not alone" $(lowest_tests) $(ARGS)

# Branch coverage, of child processes and the apps' interpreters too: what counts where is in pyproject.toml. Only 3.14 and newer count branches in
# subinterpreters. Processes that tests kill leave files that are not whole: they are left out, and removed, as `coverage html` and
# `coverage report` would try to combine them again.
# Tests of tools, pages and of the tests themselves cover nothing of the package that others do not.
unit_tests = --ignore=tests/functional $(addprefix --ignore=tests/,$(addsuffix .py,test_bench test_docs test_fuzz test_scheduling test_soak test_tools)) \
	-m "not alone"

coverage: ## branch coverage of the unit tests, with all their processes and interpreters; fails below the floor (ARGS=tests: of the whole suite, no floor)
	@$(call venv,coverage$$version,coverage) && rm -rf .coverage && mkdir .coverage && \
	{ $$bin/coverage run -m pytest -q -n auto $(or $(ARGS),$(unit_tests)); status=$$?; } && \
	{ $$bin/coverage combine -q 2>.coverage/combine.log || { cat .coverage/combine.log; exit 1; }; } && \
	echo "left out: data of $$(find .coverage -name 'data.*' -print -delete | wc -l) processes that were killed while they wrote it" && \
	$$bin/coverage html -q --fail-under=0 -d .coverage/html && $$bin/coverage report $(if $(ARGS),--fail-under=0) && \
	echo "by line: .coverage/html/index.html" && exit $$status

mutants: ## mutation testing of one of the modules that decide (MODULES="routing peek"; without it: what there is)
	@$(call venv,mutants$$version,mutants) && exec $$bin/python tools/mutants.py $(MODULES)

docs: ## the documentation as a site in .site/html; fails on a dead link (ARGS=serve: show it on port 8001)
	@$(pick) && "$$python" tools/make_venv.py "$$python" .venv/docs --group pyproject.toml:docs && bin=.venv/docs/bin && \
	$$bin/python tools/site_pages.py && \
	NO_MKDOCS_2_WARNING=1 $$bin/mkdocs $(if $(filter serve,$(ARGS)),serve --dev-addr 127.0.0.1:8001,build) --strict --quiet && echo "open .site/html/index.html"

release-check: ## build sdist and wheel into dist/, check both, and test the wheel in a fresh venv
	@$(pick) && "$$python" tools/make_venv.py "$$python" .venv/release --group pyproject.toml:release && bin=.venv/release/bin && rm -rf dist && $$bin/python -m build --no-isolation --outdir dist . && $$bin/twine check --strict dist/* && \
	$$bin/check-wheel-contents dist/*.whl && "$$python" tools/try_wheel.py dist

.PHONY: test-guest
test-guest: ## run the shipped units under a real systemd with control groups, in a small emulated machine; needs root, qemu and ../shared/tools/guest
	@$(pick) && "$$python" tools/make_venv.py "$$python" .venv/guest -e . "pytest>=8" && exec .venv/guest/bin/python -m tests.guest $(ARGS)

.PHONY: manifests
manifests: ## render deploy/kubernetes and check it against the schemas of three versions of Kubernetes; needs kubectl
	@$(pick) && "$$python" tools/make_venv.py "$$python" .venv/manifests --group pyproject.toml:manifests && exec .venv/manifests/bin/python tools/manifests.py

# On the machine's own Python: some of what Ansible needs has no wheels for the newest one.
ansible = python3 tools/make_venv.py "$$(command -v python3)" .venv/ansible --group pyproject.toml:ansible && export PATH="$(CURDIR)/.venv/ansible/bin:$$PATH" ANSIBLE_HOME="$(CURDIR)/.venv/ansible/home"

.PHONY: ansible lint-ansible
lint-ansible: ## lint deploy/ansible
	@$(ansible) && cd deploy/ansible && exec ansible-lint --offline --profile production site.yml hosts.yml haproxy roles

ansible: ## bring two servers of this machine up to date with deploy/ansible; two minutes
	@$(call venv,py$$version,test) && $(ansible) && ISOWSGI_ANSIBLE=1 exec $$bin/python -m pytest -q tests/functional/test_ansible.py $(ARGS)

# One file with the whole program, as on Debian there is no package of it.
.PHONY: traefik
traefik: ## route through a real Traefik as `isowsgi export traefik` says; a minute, and 50 MB to fetch
	@$(call venv,py$$version,test) && python3 tools/make_venv.py "$$(command -v python3)" .venv/traefik --group pyproject.toml:traefik && \
	PATH="$(CURDIR)/.venv/traefik/bin:$$PATH" ISOWSGI_WHOLE=1 exec $$bin/python -m pytest -q tests/functional/test_balancer.py -k traefik $(ARGS)

.PHONY: image
image: ## build deploy/container from Debian's packages and run it in podman; two minutes, as root (ARGS="-k stop")
	@$(call venv,py$$version,test) && ISOWSGI_IMAGE=1 exec $$bin/python -m pytest -q -s tests/functional/test_image.py $(ARGS)

fuzz: ## fuzz the parsers, the router and the control socket (MINUTES=1, ARGS="--seed 1 peeker")
	@$(call venv,py$$version,test) && exec $$bin/python -m tests.fuzz --minutes $(or $(MINUTES),1) $(ARGS)

race: ## requests that end just when they time out, for MINUTES (1) in each isolation (ARGS="--seed 1 process")
	@$(call venv,py$$version,test) && exec $$bin/python -m tests.race --minutes $(or $(MINUTES),1) $(ARGS)

.PHONY: patch-fuzz
patch-fuzz: ## patch all of the standard library that serving touches, inside an app, and see whether it is served (ARGS="--isolation process")
	@$(call venv,py$$version,test) && exec $$bin/python -m tests.patch_fuzz $(ARGS)

faults: ## make each function of a worker fail in turn, on a real server; an hour (ARGS="--only acceptor", ARGS="--minutes 5": a sample)
	@$(call venv,py$$version,test) && exec $$bin/python -m tests.faults $(ARGS)

conformance: ## compare with gunicorn's own worker, requests cut at every byte; two minutes (ARGS=whole: without that; ARGS=everywhere: at each place)
	@$(call venv,py$$version,test) && exec $$bin/python tests/conformance.py $(ARGS)

bench: ## measure isowsgi beside other servers and write docs/explanation/benchmarks.md (ARGS="--quick", ARGS=counts: only bytecodes and system calls of a request, ARGS=list)
	@$(pick) && exec "$$python" -m bench $(ARGS)

soak: ## load, reloads, kills and hostile apps for MINUTES (30), then an account of every request (ARGS="--seed 1", PYTHON=the newest found)
	@$(pick) && "$$python" tools/make_venv.py "$$python" .venv/soak$$version -e . && exec .venv/soak$$version/bin/python -m soak --minutes $(or $(MINUTES),30) $(ARGS)

applies: ## add, change, rename and remove one of 200 mounts by `isowsgi apply` under load, 20 times each (ARGS="--flat 1000": one mount a thousand times)
	@$(call venv,py$$version,test) && exec $$bin/python -m soak.applies $(ARGS)

.PHONY: tenants
tenants: ## ask 500 tenants of one template in turn, of which 20 live at a time, while some of them are asked all the time; some minutes
	@$(call venv,py$$version,test) && ISOWSGI_TENANTS=$(or $(TENANTS),500) exec $$bin/python -m pytest -q -s tests/functional/test_tenants.py -k many_tenants

.PHONY: rolling
rolling: ## 100,000 requests (REQUESTS) to three hosts behind HAProxy, and behind Caddy, while versions are applied host by host; needs root (ARGS="-k caddy")
	@$(call venv,py$$version,test) && ISOWSGI_ROLLING=$(or $(REQUESTS),100000) exec $$bin/python -m pytest -q -s tests/functional/test_machines.py $(ARGS)

neighbours: ## use each standard module in an interpreter after another one has ended (PYTHON=the newest found, ARGS="zoneinfo")
	@$(pick) && "$$python" -m tests.neighbours $(ARGS)

packages: ## use twenty popular packages in two mounts each, with reloads; some minutes (PYTHON=the newest found, ARGS="psycopg2 numpy")
	@$(call venv,py$$version,test) && exec $$bin/python -m tests.packages .venv/used$$version $(ARGS)

.PHONY: imports
imports: ## serve configuration files by uWSGI and Apache and, imported, by isowsgi, and compare the answers (ARGS="uwsgi django.ini")
	@$(call venv,py$$version,test) && exec $$bin/python -m tests.imports.sidebyside $(ARGS)

lint: ## ruff and mypy
	@$(call venv,lint,lint) && $$bin/ruff check . && $$bin/ruff format --check . && $$bin/mypy

clean: ## remove what the targets above made
	rm -rf .bench .coverage .demo .mutants .release .site .soak .venv dist .hypothesis .pytest_cache .ruff_cache .mypy_cache
