PROMISES: tuple = ()
