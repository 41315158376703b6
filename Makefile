# Two commands matter: `make demo` and `make test`. Both set up what they need first.
.DELETE_ON_ERROR:
.PHONY: demo test test-slow test-dist test-gpu test-triton test-integrations lint setup mutants calibrate bench ladder
.PHONY: ladder-page batch batch-page features features-page transfer transfer-page four-variants four-variants-page
.PHONY: components routes clean

READY := .venv/.ready
PYTHON := .venv/bin/python
TESTS := OMP_NUM_THREADS=1 $(PYTHON) -m pytest -q -n 2 --dist loadfile

demo: $(READY)  ## the main job on embedded text: verdict, intervals, report
	.venv/bin/muonlab demo

test: $(READY) lint  ## every test that takes seconds, on the CPU
	$(TESTS) -m "not slow and not dist"

test-slow: $(READY)  ## the tests that take minutes
	$(TESTS) -m "slow and not dist"

test-dist: $(READY)  ## the whole matrix of training over ranks, with gloo on the CPU
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -q -m dist

test-gpu: $(READY)  ## what needs CUDA, and training over ranks with NCCL where there are several GPUs; says what it skips
	MUONLAB_TEST_DEVICE=cuda $(PYTHON) -m pytest -q -rs tests/optim/test_sharding.py
	$(PYTHON) -m pytest -q -rs tests/optim/test_cuda.py tests/kernels/test_triton_symmetric.py

test-triton: $(READY)  ## the Triton kernels in Triton's interpreter, on the CPU (installs triton, 1 GB)
	PIP_CONSTRAINT=constraints.txt $(PYTHON) -m pip install --quiet triton
	$(TESTS) tests/kernels/test_triton_symmetric.py

test-integrations: $(READY)  ## transformers, accelerate and Lightning (installs them, 0.2 GB)
	PIP_CONSTRAINT=constraints.txt $(PYTHON) -m pip install --quiet transformers accelerate lightning
	$(TESTS) tests/integrations

lint: $(READY)
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

setup: $(READY)  ## .venv with torch (MUONLAB_TORCH=auto|cpu|cuda|keep) and all the rest

$(READY): pyproject.toml constraints.txt scripts/bootstrap
	scripts/bootstrap

mutants: $(READY)  ## plant known bugs, one at a time, and see the tests catch them
	$(PYTHON) tests/mutants.py

calibrate: $(READY)  ## 400 simulated studies and 100 simulated ladders a row: false verdicts, interval coverage
	$(PYTHON) benchmarks/calibration.py --out benchmarks/results/calibration.json

bench: $(READY)  ## the optimizers against their peers; overhead of the training loop, the workers, the store
	.venv/bin/muonlab bench --no-progress --out benchmarks/results/optimizers.json
	$(PYTHON) benchmarks/overhead.py --out benchmarks/results/overhead.json
	$(PYTHON) benchmarks/store.py > benchmarks/results/store.json

ladder: $(READY)  ## the ladder of studies/ladder.toml, about an hour on two cores, and its results page
	.venv/bin/muonlab ladder text --config studies/ladder.toml --store ladder.db
	$(PYTHON) studies/ladder.py --store ladder.db

batch: $(READY)  ## the batch studies of studies/batch*.toml, and their results page
	.venv/bin/muonlab batch text --config studies/batch.toml --store batch.db
	.venv/bin/muonlab batch text-synthetic --config studies/batch_synthetic.toml --store batch.db
	.venv/bin/muonlab batch text --config studies/batch_layernorm.toml --store batch.db
	.venv/bin/muonlab batch digits --config studies/batch_digits.toml --store batch.db
	$(PYTHON) studies/batch.py --store batch.db

batch-page: $(READY)  ## docs/batch_results.md again, from studies/batch_results.json.gz
	$(PYTHON) studies/batch.py

features: $(READY)  ## the studies of studies/features_*.toml, and pages; FASHION=fashion_mnist.npz and GPU=1 for those that want them
	.venv/bin/muonlab features digits --config studies/features_digits.toml --store features.db
	.venv/bin/muonlab features text --config studies/features_text.toml --store features.db
	.venv/bin/muonlab features text --config studies/features_text_short.toml --store features.db
	$(if $(GPU),.venv/bin/muonlab features text --config studies/features_text_wide.toml --store features.db --workers 14)
	$(if $(FASHION),.venv/bin/muonlab features fashion-mnist --data $(FASHION) --config studies/features_fashion.toml --store features.db)
	$(PYTHON) studies/features.py --store features.db

features-page: $(READY)  ## docs/features_results_*.md again, from studies/features_*.json.gz
	$(PYTHON) studies/features.py

transfer: $(READY)  ## the transfer study of studies/transfer.toml, and its results page
	.venv/bin/muonlab transfer text --config studies/transfer.toml --store transfer.db
	$(PYTHON) studies/transfer.py --store transfer.db

transfer-page: $(READY)  ## docs/transfer_results.md and its figures again, from studies/transfer_results.json.gz
	$(PYTHON) studies/transfer.py

ladder-page: $(READY)  ## docs/ladder_results.md again, from studies/ladder_results.json.gz
	$(PYTHON) studies/ladder.py

four-variants: $(READY)  ## Muon's four variants on a matrix whose constants are known, and the page
	OMP_NUM_THREADS=1 $(PYTHON) studies/four_variants.py --store four_variants.db
	$(PYTHON) studies/four_variants_page.py

four-variants-page: $(READY)  ## docs/four_variants.md and its figure again, from studies/four_variants_results.json.gz
	$(PYTHON) studies/four_variants_page.py

components: $(READY)  ## the task on which the claim about features can be computed, and its page
	OMP_NUM_THREADS=1 $(PYTHON) studies/components.py --store components.db

routes: $(READY)  ## time the ways to the polar factor and rewrite the table behind polar="auto"
	$(PYTHON) benchmarks/polar.py --out benchmarks/results/polar.json --table muonlab/kernels/routes.json

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
