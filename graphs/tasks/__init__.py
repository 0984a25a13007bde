"""Tasks without a short answer: a plan, a summary, code that must pass tests.

python -m graphs.tasks plan "A weekend in Lisbon with two children"
python -m graphs.tasks summary report.txt
python -m graphs.tasks code "Write fib(n), the n-th Fibonacci number." --tests test_fib.py
"""
