from crash.runner import main

main()
